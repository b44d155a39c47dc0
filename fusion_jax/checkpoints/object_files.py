"""Files as objects that are named by their content."""

import hashlib
from pathlib import Path

from fusion_jax.checkpoints.lazy import DTYPES, read_header
from fusion_jax.checkpoints.manifests import TensorFile

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 2**22  # bytes hashed at once


def file_sha256(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes, in bounded memory."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
    tensors = {
        name: [_NAMES[info.dtype], list(info.shape)]
        for name, info in read_header(file).items()
    }
    name = f"{prefix}{digest}{suffix}.safetensors"
    return TensorFile(name, digest, file.stat().st_size, tensors)
