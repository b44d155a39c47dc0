"""The host that a module was made for against the one that it is to run on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fusion_jax import trees
from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.checkpoints.module_checks import of_host
from fusion_jax.checkpoints.module_file import about_host, check_hash
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.peft import Module
from fusion_jax.types import Params

_ARCHITECTURE = ("family", "hidden_size", "num_layers", "num_heads")


class Host(NamedTuple):
    """What is known of a host.

    Attributes:
      about: of `module_file.about_host`: what a module keeps of it.
      params: its leaves.
    """

    about: Mapping[str, Any]
    params: Params


def host_of(checkpoint: Checkpoint, *, name: str = "") -> Host:
    """The host that a checkpoint is.

    Args:
      checkpoint: as `huggingface.load` gives it.
      name: what it is to be called; its folder's name without it.
    """
    return Host(about_host(checkpoint, name), checkpoint.params)


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
      CheckpointError: the module is of another architecture, its leaves are not those
        of a module of its config on this host, or, with `strict`, the host's hash
        differs; every fault is listed.

    Warns:
      OtherHost: the host's weights are not those that the module was made for.
    """
    faults = [
        f"its host had {fact} {module.host[fact]}, this one has {host.about[fact]}"
        for fact in _ARCHITECTURE
        if module.host.get(fact) and module.host[fact] != host.about[fact]
    ]
    leaves = trees.flatten(module.params)
    faults += sorted(of_host(module.config, leaves, host.params))
    if faults:
        raise CheckpointError(
            f"{source} does not fit the host {host.about['name']}:\n  "
            + "\n  ".join(faults[:40])
            + "\nTake the host that it was trained on, or port it to this one."
        )
    check_hash(
        source,
        module.host,
        host.about["sha256"],
        strict=strict,
        name=host.about["name"],
    )
