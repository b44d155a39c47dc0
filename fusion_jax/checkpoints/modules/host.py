"""The host that a module was made for against the one that it is to run on."""

import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.checkpoints.tensors import CheckpointError, hash_params
from fusion_jax.peft import Module
from fusion_jax.types import Params

_ARCHITECTURE = ("family", "hidden_size", "num_layers", "num_heads")


class Host(NamedTuple):
    """What is known of a host.

    Attributes:
      about: 'family', 'hidden_size', 'num_layers', 'sha256', 'name': what a module
        keeps of it.
      params: its leaves, or their shapes.
    """

    about: Mapping[str, Any]
    params: Params


def host_of(checkpoint: Checkpoint, *, name: str | None = None) -> Host:
    """The host that a checkpoint is.

    The hash is of the encoder alone: a head says nothing of what a module was fit to.

    Args:
      checkpoint: as `huggingface.load` gives it.
      name: what it is to be called; its folder's name without it.
    """
    config = checkpoint.config
    about = {
        "family": config.family,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "sha256": hash_params({"encoder": checkpoint.params["encoder"]}),
        "name": name or checkpoint.path.name,
    }
    return Host(about, checkpoint.params)


def check_host(
    module: Module, host: Host, *, strict: bool = False, source: str = "the module"
) -> None:
    """Refuses a host of another architecture; tells of one with other weights.

    Args:
      module: with what it knows of its host.
      host: that it is to run on.
      strict: whether other weights are an error too, and a module that does not know.
      source: what to call the module.

    Raises:
      CheckpointError: the module is of another architecture, its leaves do not fit the
        host's, or, with `strict`, the host's hash differs; every fault is listed.
    """
    faults = [
        f"its host had {fact} {module.host[fact]}, this one has {host.about[fact]}"
        for fact in _ARCHITECTURE
        if module.host.get(fact) and module.host[fact] != host.about[fact]
    ]
    faults += _misfits(module, host.params)
    if faults:
        raise CheckpointError(
            f"{source} does not fit the host {host.about['name']}:\n  "
            + "\n  ".join(faults[:40])
            + "\nTake the host that it was trained on, or port it to this one."
        )
    told, here = module.host.get("sha256"), host.about["sha256"]
    if told == here:
        return
    if told is None:
        said = f"{source} does not say which host it was trained on"
    else:
        said = (
            f"{source} was trained on another host ({module.host.get('name', '?')}, "
            f"{told[:12]}) than {host.about['name']} ({here[:12]})"
        )
    if strict:
        raise CheckpointError(f"{said}; without --strict-host this is a warning")
    if told is not None:
        warnings.warn(f"{said}; what it does here is not what it did", stacklevel=2)


def _misfits(module: Module, params: Params) -> list[str]:
    """Leaves of a module whose shapes the host's leaves contradict."""
    shapes = {name: np.shape(leaf) for name, leaf in trees.flatten(params).items()}
    width = next((s[-1] for n, s in shapes.items() if n.endswith("word/embedding")), 0)
    faults = []
    for name, leaf in trees.flatten(module.params).items():
        shape = np.shape(leaf)
        if name in shapes or name.startswith("head/"):
            if name in shapes and shapes[name] != shape:
                faults.append(f"{name}: shape {shape}, the host's is {shapes[name]}")
            continue
        for form, axes in _AXES:
            found = re.fullmatch(form, name)
            if found is None:
                continue
            kernel = _kernel(shapes, found.groupdict().get("path"))
            for axis, side in axes:
                wanted = width if side == "width" else kernel and kernel[side]
                if not wanted:
                    faults.append(f"{name}: the host has no such layer")
                    break
                if shape[axis] != wanted:
                    faults.append(
                        f"{name}: axis {axis} is {shape[axis]}, the host's layer has "
                        f"{wanted}"
                    )
            break
    return faults


# Leaf -> (its axis, the kernel's axis that it must equal, or the width of the host).
_AXES: tuple[tuple[str, tuple[tuple[int, Any], ...]], ...] = (
    (r"(?P<path>.+)/lora/a", ((0, 0),)),
    (r"(?P<path>.+)/lora/b", ((1, 1),)),
    (r"(?P<path>.+)/lora/magnitude", ((0, 1),)),
    (r"(?P<path>.+)/ia3/scale", ((0, 1),)),
    (r"(?P<path>.+)/ia3/input_scale", ((0, 0),)),
    (r".+/adapter/down/kernel", ((0, "width"),)),
    (r".+/adapter/up/kernel", ((1, "width"),)),
    (r"(?P<path>.+)/(prefix|prompt)/rows", ((1, 1),)),
)


def _kernel(
    shapes: Mapping[str, tuple[int, ...]], path: str | None
) -> tuple[int, ...] | None:
    if path is None:
        return None
    return shapes.get(f"{path}/kernel") or shapes.get(f"{path}/embedding")
