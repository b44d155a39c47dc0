"""A run's folder: continued when the config is the same, refused when it differs."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
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
from fusion_jax.processes import agreed, on_own_device, write_once
from fusion_jax.runtime import release_freed_memory
from fusion_jax.types import Params


class ConfigChanged(ValueError):
    """The folder holds a run of another config."""


def open_workdir(
    path: str | os.PathLike[str], config: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Makes or continues a run's folder.

    Args:
      path: the folder. One with nothing but a config.json holds no run yet.
      config: plain values; written to config.json.
      overwrite: start anew: results of the old config are removed, while what is
        named by its content (trained experts) is kept and found again.

    Returns:
      The folder.

    Raises:
      ConfigChanged: the folder's config differs (every difference is listed), or it
        has results and no config.
    """
    folder = Path(path)
    write_once(f"{folder}/config.json", lambda: _open(folder, config, overwrite))
    return folder


def _open(folder: Path, config: Mapping[str, Any], overwrite: bool) -> None:
    file = folder / "config.json"
    # Of this run alone: the folder may lie above the folders of others.
    results = [
        *folder.glob("results.json"),
        *folder.glob("*/seed_*/results.json"),
    ]
    advice = "Choose another --workdir, or start anew with --overwrite."
    if not overwrite and file.is_file():
        old = json.loads(file.read_text())
        differences = _differences(old, json.loads(json.dumps(config)))
        if not differences:
            return
        if any(entry != file for entry in folder.iterdir()):
            raise ConfigChanged(
                f"{folder} holds a run of another config:\n  "
                + "\n  ".join(differences)
                + f"\n{advice}"
            )
    elif not overwrite and results:
        raise ConfigChanged(
            f"{folder} holds results ({results[0].relative_to(folder)}) without the "
            f"config that they are of. {advice}"
        )
    for old in results:
        old.unlink()
    atomic.write_json(file, config)


def content_hash(**parts: Any) -> str:
    """SHA-256 of plain values, 16 hex digits: the name of what they determine."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached_params(file: Path, compute: Callable[[], Params]) -> tuple[Params, bool]:
    """Parameters from a file, or computed and written to it.

    Args:
      file: its name holds a hash of everything that determines the content.
      compute: gives the parameters where the file is absent.

    Returns:
      (parameters, whether they were there).

    Raises:
      CheckpointError: the file is cut off or damaged, or what was computed is not
        finite; nothing is written then.
      WriteFailed: the disk is full or the folder not writable.
    """
    if agreed(file.is_file):
        try:
            leaves = {name: jnp.asarray(x) for name, x in read_file(file).items()}
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}, or remove it to have it made anew"
            ) from error
        return trees.unflatten(leaves), True
    params = on_own_device(compute())
    release_freed_memory()
    check_finite(params, file.stem)

    def write() -> None:
        with atomic.file(file) as staging:
            leaves = trees.flatten(params)
            write_file(staging, {name: np.asarray(x) for name, x in leaves.items()})

    write_once(str(file), write)
    return params, False


def _differences(old: Any, new: Any, name: str = "config") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}")
        ]
    return [] if old == new else [f"{name}: {old!r} there, {new!r} asked for"]
