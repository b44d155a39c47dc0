"""A folder that holds a module of any kind as it is: its config, host and leaves."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.checkpoints.tensors import (
    CheckpointError,
    check_finite,
    read_file,
    write_file,
)
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.module import Module

RECORD, LEAVES = "module.json", "module.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl")


def write_module(directory: str | os.PathLike[str], module: Module) -> Path:
    """Writes a module; the folder is there in full or not at all.

    Raises:
      CheckpointError: leaves that are not finite.
      WriteFailed: the disk is full or the folder not writable.
    """
    target = Path(directory)
    check_finite(module.params, f"the module to be saved as {target}")
    leaves = trees.flatten(module.params)
    with atomic.directory(target) as staging:
        record = {"config": module.config.to_json(), "host": dict(module.host)}
        atomic.write_json(staging / RECORD, record)
        write_file(
            staging / LEAVES, {name: np.asarray(x) for name, x in leaves.items()}
        )
    return target


def read_module(
    directory: str | os.PathLike[str], shapes: Mapping[str, Any] | None = None
) -> Module:
    """Reads what `write_module` wrote.

    Args:
      directory: the folder.
      shapes: leaf name -> what the host takes (arrays or shapes), if known.

    Raises:
      CheckpointError: no such folder, pickles in the place of safetensors, a file that
        is damaged, or leaves that are missing, too many or of other shapes; all are
        listed.
    """
    folder = Path(directory)
    missing = [name for name in (RECORD, LEAVES) if not (folder / name).is_file()]
    if missing:
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
        hint = (
            f"; {', '.join(pickles)} is a pickle, which could run any code and is "
            "never opened: save the module as safetensors"
            if pickles
            else ""
        )
        raise CheckpointError(f"{folder}: no {' and no '.join(missing)}{hint}")
    try:
        record = json.loads((folder / RECORD).read_text())
        config = PeftConfig.from_json(record["config"])
        host = dict(record["host"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD}: {error}") from error
    leaves = read_file(folder / LEAVES)
    if shapes is not None:
        _check_leaves(folder, leaves, shapes)
    params = trees.unflatten({name: jnp.asarray(x) for name, x in leaves.items()})
    check_finite(params, str(folder))
    return Module(config, params, host)


def _check_leaves(
    folder: Path, leaves: Mapping[str, Any], shapes: Mapping[str, Any]
) -> None:
    wrong = [
        f"{name}: {_shape(leaves, name)} there, {_shape(shapes, name)} expected"
        for name in sorted(leaves.keys() | shapes.keys())
        if _shape(leaves, name) != _shape(shapes, name)
    ]
    if wrong:
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise CheckpointError(
            f"{folder}: {len(wrong)} leaves do not fit the host and the config:\n  "
            + "\n  ".join(wrong[:20])
            + more
        )


def _shape(leaves: Mapping[str, Any], name: str) -> Any:
    return tuple(np.shape(leaves[name])) if name in leaves else "absent"
