"""Orbax checkpoints as folders of safetensors, for the length of a merge."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.tensors import (
    INDEX,
    WEIGHTS,
    CheckpointError,
    read_file,
    write_file,
)

_MARKS = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")


def is_orbax(folder: Path) -> bool:
    """Whether a folder is an Orbax checkpoint and no folder of safetensors."""
    if (folder / WEIGHTS).exists() or (folder / INDEX).exists():
        return False
    return any((folder / mark).exists() for mark in _MARKS)


@contextlib.contextmanager
def as_folders(paths: Sequence[Path]) -> Iterator[Mapping[Path, Path]]:
    """Writes Orbax checkpoints into temporary folders of safetensors.

    Args:
      paths: of models; those that are not Orbax's stay where they are.

    Yields:
      path -> folder, valid within the block. Tensors are named 'a/b/c'.

    Raises:
      CheckpointError: a checkpoint that cannot be read, or is no nested dict of arrays.
    """
    with tempfile.TemporaryDirectory(prefix="fusion_jax_orbax_") as place:
        found: dict[Path, Path] = {}
        for number, path in enumerate(dict.fromkeys(paths)):
            if not is_orbax(path):
                found[path] = path
                continue
            # The folder's name is the model's label in plan and card.
            folder = Path(place) / str(number) / path.resolve().name
            folder.mkdir(parents=True)
            write_file(folder / WEIGHTS, _arrays(path))
            found[path] = folder
        yield found


def to_orbax(folder: Path, out: Path) -> None:
    """Saves the weights of a folder as one Orbax checkpoint, with the merge's card.

    Args:
      folder: of safetensors, in one file.
      out: of the checkpoint; its README.md and merge.json are the folder's.

    Raises:
      WriteFailed: the disk is full or the folder not writable.
    """
    from fusion_jax.checkpoints import orbax

    orbax.save(out, trees.unflatten(read_file(folder / WEIGHTS)))
    for name in ("README.md", "merge.json"):
        (out / name).write_bytes((folder / name).read_bytes())


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from orbax.checkpoint import v1

    try:
        tree = v1.load(str(path.absolute()))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "?"
        raise CheckpointError(
            f"{path}: the Orbax checkpoint cannot be read ({type(error).__name__}: "
            f"{first})"
        ) from error
    if isinstance(tree, Mapping) and set(tree) == {"params"}:
        tree = tree["params"]
    if not isinstance(tree, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(tree).__name__}, no tree of params"
        )
    found = {}
    for name, leaf in trees.flatten(tree).items():
        if not hasattr(leaf, "shape"):
            raise CheckpointError(
                f"{path}: '{name}' is a {type(leaf).__name__}; save parameters alone"
            )
        found[name] = np.ascontiguousarray(np.asarray(leaf))
    return found
