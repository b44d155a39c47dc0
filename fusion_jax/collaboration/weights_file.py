"""A safetensors file read and written in pieces, without mapping it.

Pages of a mapped file count as memory of the process for as long as the system likes;
a fuse of any number of files is to hold one piece. What is written here has, byte for
byte, the layout of the safetensors library: the same weights have the same hash,
whoever wrote them.
"""

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import atomic
from fusion_jax.checkpoints.lazy import TensorInfo, read_header
from fusion_jax.checkpoints.object_files import DTYPE_NAMES
from fusion_jax.checkpoints.output import Slot
from fusion_jax.checkpoints.tensors import CheckpointError

SPAN = 2**20
"""Elements of a piece."""

_ALIGN = 8  # of the header, as the library has it


@dataclass(frozen=True)
class Weights:
    """A file whose header is known.

    Attributes:
      file: where it lies.
      tensors: name -> where it lies in the file, in the order of the file.
    """

    file: Path
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, piece: slice) -> np.ndarray:
        """Elements of a flattened tensor, in the dtype of the file.

        Raises:
          CheckpointError: the file has become shorter since its header was read.
        """
        info = self.tensors[name]
        values = np.empty(piece.stop - piece.start, info.dtype)
        rest = values.view(np.uint8).data
        with self.file.open("rb", buffering=0) as handle:
            handle.seek(info.offset + piece.start * info.dtype.itemsize)
            while rest:
                count = handle.readinto(rest)
                if not count:
                    raise CheckpointError(
                        f"{self.file}: ends within {name}; download it again"
                    )
                rest = rest[count:]
        return values

    def wide(self, name: str, piece: slice) -> np.ndarray:
        """`read` in float64."""
        return self.read(name, piece).astype(np.float64)

    @property
    def slots(self) -> list[Slot]:
        """Its tensors, as `written` takes them."""
        return [Slot(i.name, i.shape, i.dtype) for i in self.tensors.values()]


def open_weights(file: Path) -> Weights:
    """Reads the header of a file.

    Raises:
      CheckpointError: truncated, or no safetensors file.
    """
    return Weights(file, read_header(file))


def rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float64 rounded once, to the nearest, ties to even.

    The casts of ml_dtypes go through float32, which rounds twice: 1 + 2^-8 + 2^-40
    becomes 1 in bfloat16, though 1 + 2^-7 is nearer. Rounded to odd in between, a value
    beside a tie stays beside it (Boldo & Melquiond 2008).
    """
    # What is not finite is told by who writes it.
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.type in (np.float16, np.float32, np.float64):
            return values.astype(dtype)
        between = values.astype(np.float32)
        error = values - between
        even = (between.view(np.uint32) & 1) == 0
        off = (error != 0) & even & np.isfinite(between)
        beside = np.nextafter(between, np.where(error > 0, np.inf, -np.inf), dtype="f4")
        return np.where(off, beside, between).astype(dtype)


class WeightsFile:
    """A file that is being written, of its final size from the start."""

    def __init__(self, handle: int, slots: Sequence[Slot]) -> None:
        """Writes the header.

        Args:
          handle: of an empty file.
          slots: its tensors, in the order in which they are to lie.
        """
        self._handle = handle
        self._slots = {slot.name: slot for slot in slots}
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for slot in slots:
            place = [end, end + slot.num_bytes]
            entries[slot.name] = {
                "dtype": DTYPE_NAMES[slot.dtype],
                "shape": list(slot.shape),
                "data_offsets": place,
            }
            end = place[1]
        said = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        said += b" " * (-len(said) % _ALIGN)
        begin = 8 + len(said)
        self._places = {
            s.name: begin + entries[s.name]["data_offsets"][0] for s in slots
        }
        os.ftruncate(handle, begin + end)
        self._put(struct.pack("<Q", len(said)) + said, 0)

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Writes flat values, of the tensor's dtype, from element `start` on."""
        place = self._places[name] + start * values.dtype.itemsize
        self._put(np.ascontiguousarray(values).view(np.uint8).data, place)

    def write_rounded(self, name: str, start: int, values: np.ndarray) -> bool:
        """`write` of float64 values, `rounded`; whether what is written is finite."""
        narrow = rounded(values, self._slots[name].dtype)
        self.write(name, start, narrow)
        return bool(np.isfinite(narrow).all())

    def _put(self, data: Any, place: int) -> None:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(self._handle, rest, place)
            rest, place = rest[count:], place + count


def pieces(size: int) -> Iterator[slice]:
    """Cuts a flattened tensor."""
    for start in range(0, size, SPAN):
        yield slice(start, min(start + SPAN, size))


@contextlib.contextmanager
def written(file: Path, slots: Sequence[Slot]) -> Iterator[WeightsFile]:
    """Yields a file that gets its name when the block ends well.

    Args:
      file: replaced if it is there.
      slots: its tensors, in their order.

    Raises:
      WriteFailed: the disk is full or the folder not writable.
    """
    with atomic.file(file) as staging:
        handle = os.open(staging, os.O_RDWR)
        try:
            yield WeightsFile(handle, slots)
        finally:
            os.close(handle)
