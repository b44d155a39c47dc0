"""The forms that a module's folder can have, and which one a folder is in."""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.checkpoints import module_file
from fusion_jax.checkpoints.modules import adapterhub, peft_read, peft_write
from fusion_jax.checkpoints.modules.host import Host, check_host
from fusion_jax.checkpoints.modules.sidecar import read_json
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.peft import Module


class Form(NamedTuple):
    """A form of files.

    Attributes:
      kinds: of modules that it can hold; empty = all.
      read: `(directory, *, family, ignore) -> Module`.
      write: `(directory, module, *, family, bare, base) -> directory`.
    """

    kinds: tuple[str, ...]
    read: Callable[..., Module]
    write: Callable[..., Path]


def _read_adapterhub(
    directory: Path, *, family: str | None, ignore: Collection[str]
) -> Module:
    if ignore:
        raise ValueError("keys to ignore are of peft's form alone")
    return adapterhub.read_adapterhub(directory, family=family)


FORMS: Mapping[str, Form] = {
    "fusion_jax": Form(
        kinds=(),
        read=lambda directory, **_: module_file.load_module(directory),
        write=lambda directory, module, **_: module_file.save_module(directory, module),
    ),
    "peft": Form(
        kinds=peft_write.KINDS,
        read=peft_read.read_peft,
        write=peft_write.write_peft,
    ),
    "adapterhub": Form(
        kinds=("adapter",),
        read=_read_adapterhub,
        write=lambda directory, module, *, family, base, **_: (
            adapterhub.write_adapterhub(directory, module, family=family, base=base)
        ),
    ),
}
"""name -> how it is read and written."""


def form_of(directory: Path) -> str:
    """The form that a folder is in.

    Raises:
      CheckpointError: it holds no module.
    """
    if (directory / module_file.RECORD).is_file():
        return "fusion_jax"
    values = read_json(directory / peft_read.CONFIG)
    if "peft_type" in values:
        return "peft"
    if "config" in values or (directory / adapterhub.WEIGHTS).is_file():
        return "adapterhub"
    raise CheckpointError(
        f"{directory / peft_read.CONFIG} is neither of peft (no peft_type) nor of "
        "AdapterHub (no config)"
    )


def load_module(
    directory: str | os.PathLike[str],
    *,
    host: Host | None = None,
    strict_host: bool = False,
    family: str | None = None,
    ignore: Collection[str] = (),
) -> Module:
    """Reads a module's folder, whatever its form.

    Args:
      directory: in a form of `FORMS`.
      host: that it is to run on; another architecture is an error, other weights a
        warning.
      strict_host: makes that an error too.
      family: of the host, where the files leave it open.
      ignore: keys of peft's config to pass over.

    Returns:
      The module.

    Raises:
      FileNotFoundError: there is no such folder.
      CheckpointError: the files are not what they say, or do not fit the host.
    """
    place = Path(directory)
    if not place.is_dir():
        raise FileNotFoundError(f"module folder {place} does not exist")
    if family is None and host is not None:
        family = host.about["family"]
    form = FORMS[form_of(place)]
    module = form.read(place, family=family, ignore=ignore)
    if host is not None:
        check_host(module, host, strict=strict_host, source=str(place))
        module = module._replace(host={**host.about, **module.host})
    return module


def save_module(
    directory: str | os.PathLike[str],
    module: Module,
    *,
    form: str = "fusion_jax",
    family: str | None = None,
    bare: bool = False,
    base: str | None = None,
) -> Path:
    """Writes a module's folder.

    Args:
      directory: replaced as a whole when everything is written, else untouched.
      module: what to write.
      form: of `FORMS`.
      family: of the host, where the module does not know it.
      bare: see `peft_write.write_peft`.
      base: name of the host in the files.

    Returns:
      The folder.

    Raises:
      ValueError: the form is unknown.
      CheckpointError: the form cannot hold the module.
      WriteFailed: the disk is full or the folder not writable.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is not one of {', '.join(FORMS)}")
    options: dict[str, Any] = {"family": family, "bare": bare, "base": base}
    return FORMS[form].write(directory, module, **options)
