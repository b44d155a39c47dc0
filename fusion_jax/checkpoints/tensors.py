"""Safetensors files in and out, with every fault of a file named; hashes of params."""

import hashlib
import json
import re
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from fusion_jax import trees
from fusion_jax.types import Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


class CheckpointError(ValueError):
    """A model's files cannot be used; the message names file, leaf and remedy."""


def read_weights(directory: Path) -> dict[str, tuple[np.ndarray, Path]]:
    """Every tensor of a model folder, with the file it stands in.

    Args:
      directory: holds model.safetensors, or model.safetensors.index.json and the
        shards that it names.

    Returns:
      name -> (array, file).

    Raises:
      CheckpointError: no safetensors, a shard is missing, a file is truncated, a
        name of the index is in no shard.
    """
    files, promised = shards_of(directory)
    found: dict[str, tuple[np.ndarray, Path]] = {}
    for file in files:
        for name, array in read_file(file).items():
            found[name] = (array, file)
    check_promised(directory, promised, found)
    return found


def shards_of(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files of a model folder.

    Returns:
      (files, tensor -> file name as the index promises it; empty without an index).

    Raises:
      CheckpointError: no safetensors, or a shard that the index names is missing.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS], {}
    if (directory / INDEX).is_file():
        promised = _weight_map(directory / INDEX)
        files = [directory / name for name in sorted(set(promised.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{directory / INDEX} names shards that are not there: "
                f"{', '.join(missing)}; copy or download them again"
            )
        return files, promised
    raise CheckpointError(_why_no_weights(directory))


def check_promised(
    directory: Path, promised: Mapping[str, str], found: Container[str]
) -> None:
    """Refuses an index that names tensors which its shards lack.

    Args:
      directory: of the index.
      promised: tensor -> file name, as `shards_of` gives it.
      found: names of the tensors that the shards hold.

    Raises:
      CheckpointError: names the tensors and their shards.
    """
    absent = [
        f"{name} ({shard})" for name, shard in promised.items() if name not in found
    ]
    if absent:
        raise CheckpointError(
            f"{directory / INDEX} promises tensors that their shards lack: "
            f"{', '.join(absent[:12])}{' ...' if len(absent) > 12 else ''}; the index "
            "and the shards are of different models: download both again"
        )


def read_file(file: Path) -> dict[str, np.ndarray]:
    """The tensors of one safetensors file.

    Raises:
      CheckpointError: the file is truncated or is no safetensors file.
    """
    try:
        with safetensors.safe_open(str(file), framework="numpy") as handle:
            names = handle.keys()
            return {name: handle.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size} bytes) is truncated or no safetensors "
            f"file ({error}); copy or download it again"
        ) from error


def write_file(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file in the form that transformers opens.

    Raises:
      OSError: the disk is full or the folder not writable.
    """
    try:
        safetensors.numpy.save_file(dict(tensors), str(file), metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        # The library wraps the operating system's errors; callers that explain a
        # full disk look for the number.
        number = re.search(r"os error (\d+)", str(error))
        if number:
            raise OSError(int(number[1]), str(error), str(file)) from error
        raise


def hash_params(params: Params) -> str:
    """SHA-256 (hex) of names, dtypes, shapes and bytes in sorted order of leaves."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_finite(params: Params, source: str) -> None:
    """Refuses parameters with NaN or infinity.

    Args:
      params: tree of float leaves.
      source: where they come from, for the message.

    Raises:
      CheckpointError: names every leaf that is not finite and how many elements.
    """
    faults = []
    for name, leaf in trees.flatten(params).items():
        array = np.asarray(leaf)
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            faults.append(f"{name} ({bad} of {array.size})")
    if faults:
        raise CheckpointError(
            f"{source} holds NaN or infinity in {', '.join(faults[:12])}"
            f"{f' and {len(faults) - 12} more leaves' if len(faults) > 12 else ''}; "
            "the training run that wrote it diverged: use an earlier checkpoint"
        )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{index} is no index of shards ({error!r}); download it again"
        ) from error


def _why_no_weights(directory: Path) -> str:
    pickles = sorted(file.name for form in _PICKLES for file in directory.glob(form))
    if pickles:
        return (
            f"{directory} has its weights only as pickle ({', '.join(pickles)}); "
            "opening a pickle runs whatever code its author put there, so it is "
            "refused: convert it to model.safetensors (save_pretrained of a recent "
            "transformers does) or take a revision of the model that has it"
        )
    held = sorted(file.name for file in directory.iterdir())[:12]
    return (
        f"{directory} has no {WEIGHTS} and no {INDEX}; it holds "
        f"{', '.join(held) or 'nothing'}"
    )
