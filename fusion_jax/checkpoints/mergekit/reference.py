"""How a mergekit file names a model, and the folder that is meant."""

from pathlib import Path as Folder
from typing import Any

from fusion_jax.checkpoints.mergekit.yaml import MergekitError, Path, Reading
from fusion_jax.checkpoints.sources import resolve


def read_model(data: Any, path: Path, reading: Reading) -> str | None:
    """A reference to a model: a text, or a mapping of model, lora and the like."""
    if data is None or (isinstance(data, str) and data):
        return data
    if not isinstance(data, dict):
        reading.fault(path, f"{data!r} is no model; give a folder or a hub id")
        return None
    reading.check_keys(data, ("model", "lora", "override_architecture"), path)
    if data.get("lora") is not None:
        reading.fault((*path, "lora"), "a LoRA on top of a model is not supported")
    if data.get("override_architecture") is not None:
        reading.note(
            (*path, "override_architecture"),
            "not needed, tensors are what the files hold (ignored)",
        )
    inner, path = data.get("model"), (*path, "model")
    if isinstance(inner, dict):
        reading.check_keys(inner, ("path", "revision"), path)
        if inner.get("revision") is not None:
            reading.fault((*path, "revision"), "a revision of a model is not supported")
        inner, path = inner.get("path"), (*path, "path")
    if not isinstance(inner, str) or not inner:
        reading.fault(path, "names no model; give a folder or a hub id")
        return None
    return inner


def folder_of(text: str, directory: Folder) -> Folder:
    """The folder of a model.

    Args:
      text: a folder, relative to the current one or to `directory`, or a hub id.
      directory: of the file.

    Raises:
      MergekitError: there is none, or it asks for a LoRA or a revision.
    """
    for path in (Folder(text).expanduser(), directory / text):
        if path.is_dir():
            return path
    if "+" in text:
        raise MergekitError(
            f"'{text}': a LoRA on top of a model (model+lora) is not supported; merge "
            "the LoRA into its model first"
        )
    if "@" in text:
        raise MergekitError(
            f"'{text}': a revision (model@revision) is not supported; download it and "
            "name its folder"
        )
    try:
        return resolve(text)
    except FileNotFoundError as error:
        raise MergekitError(f"'{text}': {error}") from error
