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
from fusion_jax.checkpoints.tensors import check_finite, read_file, write_file
from fusion_jax.types import Params


class ConfigChanged(ValueError):
    """The folder holds a run of another config."""


def open_workdir(
    path: str | os.PathLike[str], config: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Makes or continues a run's folder.

    Args:
      path: the folder.
      config: plain values; written to config.json.
      overwrite: start anew: results of the old config are removed, while what is
        named by its content (trained experts) is kept and found again.

    Returns:
      The folder.

    Raises:
      ConfigChanged: the folder's config differs; every difference is listed.
    """
    folder = Path(path)
    file = folder / "config.json"
    if file.is_file() and not overwrite:
        old = json.loads(file.read_text())
        differences = _differences(old, json.loads(json.dumps(config)))
        if differences:
            raise ConfigChanged(
                f"{folder} holds a run of another config:\n  "
                + "\n  ".join(differences)
                + "\nChoose another --workdir, or start anew with --overwrite."
            )
        return folder
    for old in folder.glob("**/results.json"):
        old.unlink()
    atomic.write_json(file, config)
    return folder


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
      CheckpointError: the file is cut off or damaged.
      ValueError: computed parameters are not finite; nothing is written.
    """
    if file.is_file():
        leaves = {name: jnp.asarray(x) for name, x in read_file(file).items()}
        return trees.unflatten(leaves), True
    params = compute()
    check_finite(params, file.stem)
    file.parent.mkdir(parents=True, exist_ok=True)
    # write_file writes in place: the rename makes it whole or absent.
    partial = file.with_suffix(".partial")
    write_file(partial, {n: np.asarray(x) for n, x in trees.flatten(params).items()})
    os.replace(partial, file)
    return params, False


def _differences(old: Any, new: Any, name: str = "config") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}")
        ]
    return [] if old == new else [f"{name}: {old!r} there, {new!r} asked for"]
