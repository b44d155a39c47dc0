"""Modules in a folder: module.safetensors by our leaf names, and module.json.

module.json holds 'format', 'schema', 'config', 'host' and 'leaves' (name -> shape), so
that a folder that lost or gained a tensor is found out without the host.
"""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.checkpoints.module_checks import of_config, of_host, of_record
from fusion_jax.checkpoints.tensors import (
    CheckpointError,
    check_finite,
    hash_params,
    read_file,
    write_file,
)
from fusion_jax.peft import Module, PeftConfig
from fusion_jax.types import Params

FORMAT, SCHEMA = "fusion_jax module", 1
WEIGHTS, RECORD = "module.safetensors", "module.json"


class OtherHost(UserWarning):
    """A module was loaded for another host than it was made for."""


def about_host(checkpoint: Checkpoint, name: str = "") -> dict[str, Any]:
    """What a module records of its host.

    Args:
      checkpoint: the host.
      name: what it is called.

    Returns:
      'name', 'family', 'hidden_size', 'num_layers', 'num_heads', and 'sha256' of the
      encoder's leaves: a head is not part of the host.
    """
    config = checkpoint.config
    return {
        "name": name or checkpoint.path.name,
        "family": config.family,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "sha256": host_hash(checkpoint.params),
    }


def host_hash(params: Params) -> str:
    """SHA-256 of a host's encoder; what is beside it, such as a head, does not count.

    Args:
      params: {'encoder': ...}, without leaves of a module.
    """
    return hash_params({"encoder": params["encoder"]})


def save_module(
    directory: str | os.PathLike[str], module: Module, *, card: str | None = None
) -> Path:
    """Writes a module's folder.

    Args:
      directory: replaced as a whole when everything is written, else untouched.
      module: its leaves have to be those of its config.
      card: content of README.md.

    Returns:
      The folder.

    Raises:
      CheckpointError: leaves that do not fit the config, or that are not finite.
      WriteFailed: the disk is full or the folder not writable.
    """
    target = Path(directory)
    leaves = {name: np.asarray(x) for name, x in trees.flatten(module.params).items()}
    check_finite(module.params, f"the module to be saved as {target}")
    _refuse(f"the module to be saved as {target}", of_config(module.config, leaves))
    record = {
        "format": FORMAT,
        "schema": SCHEMA,
        "config": module.config.to_json(),
        "host": dict(module.host),
        "leaves": {name: list(leaf.shape) for name, leaf in leaves.items()},
    }
    with atomic.directory(target) as staging:
        write_file(staging / WEIGHTS, leaves)
        atomic.write_json(staging / RECORD, record)
        if card is not None:
            atomic.write_text(staging / "README.md", card)
    return target


def load_module(
    directory: str | os.PathLike[str],
    *,
    host: Params | None = None,
    strict_host: bool = False,
    made_for: str | None = None,
) -> Module:
    """Reads a module's folder, and holds it against a host.

    Args:
      directory: of `save_module`.
      host: tree of the host that it is meant for, if one is; not changed.
      strict_host: another host than the module was made for is an error.
      made_for: `host_hash` of the host's checkpoint, where `host` has leaves that were
        drawn beside it (a pooler); of `host` without it.

    Returns:
      The module; its leaves lie on the default device.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: no such files, pickles alone, missing or extra tensors, shapes
        or a rank other than the record's, leaves that this host has no place for, or,
        with `strict_host`, another host or none said. All faults are listed.

    Warns:
      OtherHost: the host's weights are not those that the module was made for.
    """
    folder = Path(directory)
    config, about, shapes = _record(folder)
    leaves = read_file(_weights(folder))
    wrong = of_record(shapes, leaves, RECORD) or of_config(config, leaves)
    if host is not None and not wrong:
        wrong = of_host(config, leaves, host)
    _refuse(str(folder), wrong)
    params = trees.unflatten(leaves)
    check_finite(params, str(folder))
    if host is not None:
        found = made_for or host_hash(trees.unflatten(_encoder_of(host)))
        check_hash(str(folder), about, found, strict=strict_host)
    return Module(config, jax.tree.map(jnp.asarray, params), about)


def check_hash(
    source: str,
    about: Mapping[str, Any],
    found: str,
    *,
    strict: bool = False,
    name: str = "",
) -> None:
    """Tells of a host with other weights than the module's own; strict, refuses it.

    Args:
      source: what to call the module.
      about: what it records of its host.
      found: `host_hash` of the host that it is to run on.
      strict: other weights are an error, and so is a module that does not say.
      name: of the host that it is to run on.

    Raises:
      CheckpointError: with `strict`, another host, or none said.

    Warns:
      OtherHost: the host's weights are not those that the module was made for.
    """
    recorded = about.get("sha256")
    if recorded == found or not (recorded or strict):
        return
    if recorded:
        said = (
            f"{source} was made for the host {about.get('name') or 'without a name'} "
            f"({str(recorded)[:12]}), and {name or 'this one'} has other weights "
            f"({found[:12]}): equal shapes do not make an equal host"
        )
    else:
        said = f"{source} does not say which host it was made for"
    if strict:
        raise CheckpointError(
            f"{said}; take a module of this host, or do without strict_host "
            "(--strict-host)"
        )
    warnings.warn(said, OtherHost, stacklevel=3)


def _record(folder: Path) -> tuple[PeftConfig, dict[str, Any], dict[str, list[int]]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    file = folder / RECORD
    if not file.is_file():
        raise CheckpointError(
            f"{folder} is no module: it has no {RECORD}{_held(folder)}"
        )
    try:
        record = json.loads(file.read_text())
        if (record["format"], record["schema"]) != (FORMAT, SCHEMA):
            raise CheckpointError(
                f"{file} is of format {record['format']!r}, schema {record['schema']}; "
                f"this version reads {FORMAT!r}, schema {SCHEMA}"
            )
        config = PeftConfig.from_json(record["config"])
        return config, dict(record["host"]), dict(record["leaves"])
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is no record of a module: {error}") from error


def _weights(folder: Path) -> Path:
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}{_held(folder)}")
    return file


def _held(folder: Path) -> str:
    held = sorted(file.name for file in folder.iterdir())
    pickles = [name for name in held if name.endswith((".bin", ".pt", ".pkl", ".pth"))]
    said = f"; it holds {', '.join(held[:12]) or 'nothing'}"
    if pickles:
        said += (
            f". {', '.join(pickles)}: opening a pickle runs whatever code its author "
            "put there, so it is refused; convert it to safetensors"
        )
    return said


def _refuse(source: str, wrong: list[str]) -> None:
    if wrong:
        lines = "\n  ".join(sorted(wrong)[:40])
        more = f"\n  and {len(wrong) - 40} more" if len(wrong) > 40 else ""
        raise CheckpointError(
            f"{source}: {len(wrong)} leaves do not fit:\n  {lines}{more}\nTake the "
            "module as it was saved, and the host that it was made for."
        )


def _encoder_of(host: Params) -> dict[str, Any]:
    return {n: x for n, x in trees.flatten(host).items() if n.startswith("encoder/")}
