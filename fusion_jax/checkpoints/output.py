"""Safetensors shards written in place, piece by piece, without holding any tensor."""

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_jax.checkpoints.lazy import DTYPES
from fusion_jax.checkpoints.tensors import INDEX, WEIGHTS

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGN = 64  # of the data's first byte, so that a reader can map it


class Slot(NamedTuple):
    """A tensor of the output.

    Attributes:
      name: of the tensor.
      shape: its axes.
      dtype: of numpy or ml_dtypes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Shards:
    """The weight files of an output folder, of their final size from the start.

    A disk that is too full is found out here, before any work. Pieces may be written in
    any order and again; what was written before a crash is still there.
    """

    def __init__(
        self, directory: Path, slots: Sequence[Slot], shard_bytes: int
    ) -> None:
        """Lays the files out, and makes those that are not there.

        Args:
          directory: of the output.
          slots: tensors, in the order in which they are to lie.
          shard_bytes: most bytes of a file, unless one tensor alone is larger.

        Raises:
          OSError: the disk is full, or the folder not writable.
        """
        groups = _grouped(slots, shard_bytes)
        self.slots = list(slots)
        self.fresh: set[str] = set()  # tensors of files that were not there in full
        self._weight_map: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._handles: dict[Path, int] = {}
        for number, group in enumerate(groups, start=1):
            name = (
                WEIGHTS
                if len(groups) == 1
                else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            )
            self._lay_out(directory / name, group)
        self._directory = directory

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Writes flat values of a tensor from element `start` on."""
        file, offset, itemsize = self._places[name]
        data = np.ascontiguousarray(values).view(np.uint8).data
        place = offset + start * itemsize
        while data:
            done = os.pwrite(self._handles[file], data, place)
            data, place = data[done:], place + done

    def sync(self) -> None:
        """Waits until all that was written is on the disk."""
        for handle in self._handles.values():
            _sync(handle)

    def finish(self) -> None:
        """Syncs, closes, and writes the index of several shards."""
        self.sync()
        self.close()
        if len(self._handles) > 1 or not self._weight_map:
            total = sum(slot.num_bytes for slot in self.slots)
            index = {
                "metadata": {"total_size": total},
                "weight_map": dict(sorted(self._weight_map.items())),
            }
            (self._directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Closes the files."""
        for handle in self._handles.values():
            if handle >= 0:
                os.close(handle)
        self._handles = dict.fromkeys(self._handles, -1)

    def _lay_out(self, file: Path, slots: Sequence[Slot]) -> None:
        entries, end = {}, 0
        for slot in slots:
            entries[slot.name] = {
                "dtype": _NAMES[slot.dtype],
                "shape": list(slot.shape),
                "data_offsets": [end, end + slot.num_bytes],
            }
            end += slot.num_bytes
            self._weight_map[slot.name] = file.name
        text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        text += b" " * (-(8 + len(text)) % _ALIGN)
        header = struct.pack("<Q", len(text)) + text
        for slot in slots:
            begin = entries[slot.name]["data_offsets"][0]
            self._places[slot.name] = file, len(header) + begin, slot.dtype.itemsize
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self._handles[file] = handle
        if os.fstat(handle).st_size != len(header) + end:
            self.fresh |= {slot.name for slot in slots}
            os.ftruncate(handle, 0)
            _reserve(handle, len(header) + end)
        os.pwrite(handle, header, 0)


# macOS has no fdatasync.
_sync = getattr(os, "fdatasync", os.fsync)


def _reserve(handle: int, size: int) -> None:
    """Makes a file of a size whose blocks are the file's own already."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:  # macOS
        os.ftruncate(handle, size)


def _grouped(slots: Sequence[Slot], shard_bytes: int) -> list[list[Slot]]:
    groups: list[list[Slot]] = [[]]
    held = 0
    for slot in slots:
        if groups[-1] and held + slot.num_bytes > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(slot)
        held += slot.num_bytes
    return groups
