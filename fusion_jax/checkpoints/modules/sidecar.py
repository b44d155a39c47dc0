"""What peft's and AdapterHub's files have no place for: the host, in a file beside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.checkpoints.tensors import CheckpointError

SIDECAR = "fusion_jax.json"
_FACTS = {
    "family": str,
    "hidden_size": int,
    "num_layers": int,
    "num_heads": int,
    "sha256": str,
    "name": str,
}


def read_sidecar(directory: Path) -> dict[str, Any]:
    """What a folder says of its module's host; empty without the file.

    Raises:
      CheckpointError: the file is no JSON, or says a fact that there is none of.
    """
    file = directory / SIDECAR
    if not file.is_file():
        return {}
    values = read_json(file)
    about = values.get("host")
    if not isinstance(about, dict):
        raise CheckpointError(f"{file}: no 'host'; delete the file, or write it anew")
    wrong = [
        f"{name} = {value!r}"
        for name, value in about.items()
        if name in _FACTS and not isinstance(value, _FACTS[name])
    ]
    if wrong:
        raise CheckpointError(f"{file}: {', '.join(wrong)} is of the wrong type")
    return about


def write_sidecar(directory: Path, about: Mapping[str, Any]) -> None:
    """Writes what is known of the host; nothing where that is nothing."""
    if about:
        write_sorted(directory / SIDECAR, {"host": dict(about)})


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
      CheckpointError: it is not there, or no JSON object.
    """
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist{_elsewhere(file)}") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return values


def write_sorted(file: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON as peft does: sorted keys, two blanks of indent."""
    atomic.write_json(file, dict(sorted(values.items())))


def _elsewhere(file: Path) -> str:
    """Adapters of a name lie in folders of that name."""
    below = sorted(f.parent.name for f in file.parent.glob(f"*/{file.name}"))
    if below:
        return f"; it is in {', '.join(below)}: name one of these folders"
    return "; the folder holds no module"
