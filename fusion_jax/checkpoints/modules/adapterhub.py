"""AdapterHub directories of bottleneck adapters: double_seq_bn, seq_bn, par_bn.

adapter_config.json and adapter.safetensors, as adapters 1.x writes and reads them.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.checkpoints.modules.adapterhub_config import (
    read_config,
    written_config,
)
from fusion_jax.checkpoints.modules.adapterhub_tensors import (
    PLACES,
    PRE_NORM,
    read_leaves,
    tensor_name,
    width_faults,
)
from fusion_jax.checkpoints.modules.folder_tensors import tensors_in
from fusion_jax.checkpoints.modules.paths import layer_number
from fusion_jax.checkpoints.modules.sidecar import (
    read_json,
    read_sidecar,
    write_sidecar,
    write_sorted,
)
from fusion_jax.checkpoints.modules.targets import patterns_of
from fusion_jax.checkpoints.tensors import (
    CheckpointError,
    check_finite,
    write_file,
)
from fusion_jax.peft import Module, PeftConfig
from fusion_jax.peft.bottleneck import activation_of, scale_of
from fusion_jax.peft.low_rank import own_leaves

CONFIG, WEIGHTS, PICKLE = (
    "adapter_config.json",
    "adapter.safetensors",
    "pytorch_adapter.bin",
)
_REMEDY = "save it again with use_safetensors=True"
_VERSION = "adapters.1.2.0"


def read_adapterhub(directory: Path, *, family: str | None = None) -> Module:
    """A module of an AdapterHub directory.

    Args:
      directory: holds adapter_config.json and adapter.safetensors.
      family: of the host, where the file does not say it (model_type).

    Returns:
      The module; a head in the folder is not read, which is said.

    Raises:
      CheckpointError: a pickle, a config that ours cannot say, tensors that are
        unexpected, missing or of another width; every fault is listed.
    """
    values = read_json(directory / CONFIG)
    tensors = tensors_in(directory, WEIGHTS, PICKLE, _REMEDY)
    about = read_sidecar(directory)
    chosen = str(family or about.get("family") or values.get("model_type"))
    own = values.get("config")
    if chosen not in PLACES or not isinstance(own, Mapping):
        known = ", ".join(PLACES)
        raise CheckpointError(
            f"{directory / CONFIG}: model_type {chosen!r} is not one of {known}"
            if chosen not in PLACES
            else f"{directory / CONFIG}: 'config' is no object of its settings"
        )
    fields, faults, notes = read_config(
        own, versioned="version" in values, post_norm=chosen not in PRE_NORM
    )
    leaves, wrong = read_leaves(tensors, chosen, own)
    faults += wrong + width_faults(leaves, own, values.get("hidden_size"))
    if faults:
        listed = "\n  ".join(faults[:40])
        raise CheckpointError(
            f"{directory}: {len(faults)} faults against its {CONFIG}:\n  {listed}"
        )
    for note in notes:
        warnings.warn(f"{directory}: {note}", stacklevel=2)
    if (directory / "head_config.json").is_file():
        warnings.warn(f"{directory}: its head is not read", stacklevel=2)
    paths = dict.fromkeys(name.partition("/adapter/")[0] for name in leaves)
    numbers = [n for n in map(layer_number, paths) if n is not None]
    num_layers = int(about.get("num_layers") or max(numbers) + 1)
    config = PeftConfig(**fields, targets=patterns_of(paths, num_layers))
    found = {"family": chosen, "hidden_size": values.get("hidden_size")}
    found["name"] = values.get("model_name")
    found = {name: value for name, value in found.items() if value}
    module = Module(config, trees.unflatten(leaves), {**found, **about})
    check_finite(module.params, str(directory))
    return module


def write_adapterhub(
    directory: str | os.PathLike[str],
    module: Module,
    *,
    family: str | None = None,
    name: str = "default",
    base: str | None = None,
) -> Path:
    """Writes a bottleneck adapter as the adapters library reads it.

    Args:
      directory: replaced as a whole when everything is written, else untouched.
      module: of kind adapter, without a head or norms of its own.
      family: of the host; the module's own without it.
      name: of the adapter.
      base: name of the host in the config; the module's own without it.

    Returns:
      The folder.

    Raises:
      CheckpointError: the module has what this form cannot say; every fault is listed.
      WriteFailed: the disk is full or the folder not writable.
    """
    target = Path(directory)
    chosen = family or module.host.get("family")
    leaves, rest = own_leaves(module)
    faults = _write_faults(module, chosen, list(rest))
    tensors, ends, widths = {}, set(), set()
    for leaf, value in {} if faults else leaves.items():
        path, _, own = leaf.partition("/adapter/")
        tensors[tensor_name(str(chosen), path, own, name)] = np.ascontiguousarray(
            value.T if own.endswith("kernel") else value
        )
        ends.add("/".join(path.split("/")[-2:]))
        if own == "down/kernel":
            widths.add(value.shape)
    if len(widths) > 1:
        faults.append(f"its bottlenecks differ in width: {sorted(widths)}")
    if chosen in PRE_NORM and module.config.place == "parallel":
        faults.append(
            "a parallel adapter reads the residual stream of such a host there, and "
            "the normed one here"
        )
    if faults:
        raise CheckpointError(
            f"the module cannot be written in AdapterHub's form to {target}:\n  "
            + "\n  ".join(faults)
        )
    check_finite(module.params, f"the module to be saved as {target}")
    width, inner = widths.pop()
    values = {
        "config": written_config(
            module.config,
            activation=activation_of(module.config),
            scale=scale_of(module.config),
            factor=width / inner,
            ends=ends,
        ),
        "hidden_size": width,
        "model_name": base or module.host.get("name"),
        "model_type": chosen,
        "name": name,
        "version": _VERSION,
    }
    with atomic.directory(target) as staging:
        write_sorted(staging / CONFIG, values)
        write_file(staging / WEIGHTS, tensors)
        write_sidecar(staging, module.host)
    return target


def _write_faults(module: Module, family: Any, rest: Sequence[str]) -> list[str]:
    faults = []
    if module.config.kind != "adapter":
        faults.append(f"this form is for adapters, not {module.config.kind}")
    if family not in PLACES:
        faults.append(
            f"the host's family is {family!r}; name one of {', '.join(PLACES)}"
        )
    if rest:
        faults.append(
            f"{', '.join(rest[:6])}{' ...' if len(rest) > 6 else ''}: leaves of the "
            "host have no place there; leave them out, or write our own form"
        )
    return faults
