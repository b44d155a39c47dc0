"""Our own form of a module: module.json and module.safetensors, for every kind."""

import os
from pathlib import Path

import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.checkpoints.modules.sidecar import read_json, write_sorted
from fusion_jax.checkpoints.tensors import (
    CheckpointError,
    check_finite,
    read_file,
    write_file,
)
from fusion_jax.peft import Module, PeftConfig, module_leaves

CONFIG, WEIGHTS = "module.json", "module.safetensors"
FORMAT = 1


def read_own(directory: Path) -> Module:
    """A module of a folder that `write_own` made.

    Raises:
      CheckpointError: a file is missing or damaged, it is of a later version, or its
        leaves are not those of its config; every fault is listed.
    """
    values = read_json(directory / CONFIG)
    if values.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory / CONFIG}: format {values.get('format')!r}; what is read here "
            f"is {FORMAT}"
        )
    file = directory / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{directory} has no {WEIGHTS}")
    try:
        config = PeftConfig.from_json(values.get("config") or {})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{directory / CONFIG}: {error}") from error
    leaves = read_file(file)
    _, strange = trees.partition(trees.unflatten(leaves), module_leaves(config))
    missing = set(values.get("leaves") or leaves) - leaves.keys()
    faults = [f"{name} is unexpected" for name in trees.flatten(strange)]
    faults += [f"{name} is missing" for name in sorted(missing)]
    if faults or not leaves:
        raise CheckpointError(
            f"{directory}: the leaves are not those of its {CONFIG}:\n  "
            + "\n  ".join(faults or ["there is none"])
        )
    module = Module(config, trees.unflatten(leaves), dict(values.get("host") or {}))
    check_finite(module.params, str(directory))
    return module


def write_own(directory: str | os.PathLike[str], module: Module) -> Path:
    """Writes a module of any kind.

    Args:
      directory: replaced as a whole when everything is written, else untouched.
      module: what to write.

    Returns:
      The folder.

    Raises:
      CheckpointError: leaves are not finite.
      WriteFailed: the disk is full or the folder not writable.
    """
    target = Path(directory)
    check_finite(module.params, f"the module to be saved as {target}")
    leaves = {
        name: np.ascontiguousarray(leaf)
        for name, leaf in trees.flatten(module.params).items()
    }
    values = {
        "format": FORMAT,
        "config": module.config.to_json(),
        "host": dict(module.host),
        "leaves": sorted(leaves),
    }
    with atomic.directory(target) as staging:
        write_sorted(staging / CONFIG, values)
        write_file(staging / WEIGHTS, leaves)
    return target
