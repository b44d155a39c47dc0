"""The tensors of a module's folder, which are never opened as a pickle."""

from pathlib import Path

import numpy as np

from fusion_jax.checkpoints.tensors import CheckpointError, read_file


def tensors_in(
    directory: Path, weights: str, pickle: str, remedy: str
) -> dict[str, np.ndarray]:
    """Reads a folder's tensors.

    Args:
      directory: of the module.
      weights: name of the safetensors file.
      pickle: name of the file that would hold them otherwise.
      remedy: how to get from the one to the other.

    Raises:
      CheckpointError: there is a pickle alone, or nothing.
    """
    if (directory / weights).is_file():
        return read_file(directory / weights)
    if (directory / pickle).is_file():
        raise CheckpointError(
            f"{directory} has its tensors only as a pickle ({pickle}); opening one "
            f"runs whatever code its author put there, so it is refused: {remedy}"
        )
    held = ", ".join(sorted(file.name for file in directory.iterdir())[:12])
    raise CheckpointError(f"{directory} has no {weights}; it holds {held}")
