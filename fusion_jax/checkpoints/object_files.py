"""Files as objects that are named by their content."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints.lazy import DTYPES, TensorInfo, read_header
from fusion_jax.checkpoints.manifests import TensorFile

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""dtype -> how safetensors files name it."""


def file_sha256(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes, in bounded memory."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def described(file: Path, prefix: str, suffix: str = "") -> TensorFile:
    """A safetensors file as the object it will be.

    Args:
      file: the file.
      prefix: of the object's name, which its hash follows.
      suffix: between the hash and '.safetensors'.

    Raises:
      CheckpointError: it is no safetensors file.
    """
    digest = file_sha256(file)
    tensors = table(read_header(file))
    name = f"{prefix}{digest}{suffix}.safetensors"
    return TensorFile(name, digest, file.stat().st_size, tensors)


def table(tensors: Mapping[str, TensorInfo]) -> dict[str, list[Any]]:
    """Tensor -> [dtype as safetensors names it, shape], as manifests hold it."""
    return {
        name: [DTYPE_NAMES[info.dtype], list(info.shape)]
        for name, info in tensors.items()
    }
