"""Safetensors checkpoints opened without reading their weights."""

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from fusion_jax.checkpoints.tensors import (
    WEIGHTS,
    CheckpointError,
    check_promised,
    shards_of,
)

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""The format's names of dtypes."""

_MAX_HEADER = 100 * 2**20  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
      name: in the file.
      dtype: of numpy or ml_dtypes.
      shape: its axes.
      file: the safetensors file.
      offset: of its first byte in the file.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.size * self.dtype.itemsize

    @property
    def floating(self) -> bool:
        """Whether it can be interpolated."""
        return self.dtype.kind == "f" or self.dtype.name.startswith(("bfloat", "float"))


@dataclass(frozen=True)
class LazyCheckpoint:
    """A model folder whose weights stay on disk until they are asked for.

    Attributes:
      directory: the folder.
      tensors: name -> where it lies, in the order of the files.
    """

    directory: Path
    tensors: Mapping[str, TensorInfo]
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict, repr=False)

    def read(self, name: str) -> np.ndarray:
        """A read-only view of the file's pages; nothing is copied."""
        info = self.tensors[name]
        if not info.size:
            return np.zeros(info.shape, info.dtype)
        if info.file not in self._maps:
            with info.file.open("rb") as handle:
                self._maps[info.file] = mmap.mmap(
                    handle.fileno(), 0, access=mmap.ACCESS_READ
                )
        flat = np.frombuffer(
            self._maps[info.file], info.dtype, count=info.size, offset=info.offset
        )
        return flat.reshape(info.shape)

    @property
    def files(self) -> list[Path]:
        """The weight files, each once."""
        return list(dict.fromkeys(info.file for info in self.tensors.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.num_bytes for info in self.tensors.values())

    def config(self) -> dict:
        """What config.json says; empty where there is none.

        Raises:
          CheckpointError: it is no JSON object.
        """
        file = self.directory / "config.json"
        if not file.is_file():
            return {}
        try:
            return dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{file} is no JSON object ({error}); download it again"
            ) from error


def open_checkpoint(directory: Path) -> LazyCheckpoint:
    """Reads the headers of a folder's safetensors files.

    Args:
      directory: holds model.safetensors, or an index and its shards.

    Raises:
      CheckpointError: no folder, no safetensors, a missing or truncated shard, a
        header that is none, or a tensor that the index names and its shard lacks.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not there, or no folder of a model")
    files, promised = shards_of(directory)
    found: dict[str, TensorInfo] = {}
    for file in files:
        found |= read_header(file)
    check_promised(directory, promised, found)
    if not found:
        raise CheckpointError(f"{directory / WEIGHTS} holds no tensor")
    return LazyCheckpoint(directory, found)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, from its header.

    Raises:
      CheckpointError: truncated, or no safetensors file.
    """
    size = file.stat().st_size

    def fault(why: str) -> CheckpointError:
        return CheckpointError(
            f"{file} ({size} bytes) is truncated or no safetensors file ({why}); copy "
            "or download it again"
        )

    with file.open("rb") as handle:
        start = handle.read(8)
        if len(start) < 8:
            raise fault("it ends within the length of its header")
        (length,) = struct.unpack("<Q", start)
        if length > min(_MAX_HEADER, size - 8):
            raise fault(f"its header says {length} bytes")
        try:
            header = json.loads(handle.read(length))
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            found = {}
            for name, entry in entries.items():
                begin, end = entry["data_offsets"]
                if entry["dtype"] not in DTYPES:
                    raise CheckpointError(
                        f"{file}: {name} has dtype {entry['dtype']}, which cannot be "
                        f"merged; these can: {', '.join(DTYPES)}"
                    )
                info = TensorInfo(
                    name,
                    DTYPES[entry["dtype"]],
                    tuple(int(n) for n in entry["shape"]),
                    file,
                    8 + length + int(begin),
                )
                if info.num_bytes != end - begin:
                    raise fault(f"{name} has {end - begin} bytes for {info.shape}")
                if 8 + length + end > size:
                    raise fault(f"{name} ends at byte {8 + length + end}")
                found[name] = info
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise fault(f"header: {error!r}") from error
    return dict(sorted(found.items(), key=lambda item: item[1].offset))
