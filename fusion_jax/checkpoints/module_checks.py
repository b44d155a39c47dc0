"""Whether leaves are those of a module: by a record, by its config, by a host."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.peft import PeftConfig, init_module, module_leaves
from fusion_jax.peft.config import length_of
from fusion_jax.peft.delta import rank_of
from fusion_jax.peft.lora import parts
from fusion_jax.peft.module import replaced
from fusion_jax.types import Params


def of_record(
    shapes: Mapping[str, Sequence[int]], leaves: Mapping[str, Any], source: str
) -> list[str]:
    """Tensors that are missing, extra or of another shape than they should be.

    Args:
      shapes: name -> shape as it should be.
      leaves: name -> array.
      source: what says how it should be.
    """
    wrong = [f"{name}: missing" for name in shapes.keys() - leaves.keys()]
    wrong += [f"{name}: not in {source}" for name in leaves.keys() - shapes.keys()]
    wrong += [
        f"{name}: shape {leaves[name].shape}, {tuple(shapes[name])} in {source}"
        for name in shapes.keys() & leaves.keys()
        if list(leaves[name].shape) != list(shapes[name])
    ]
    return wrong


def of_config(config: PeftConfig, leaves: Mapping[str, Any]) -> list[str]:
    """Leaves that a module of this config cannot have, and ranks that it has not."""
    foreign = trees.partition(dict(leaves), module_leaves(config))[1]
    wrong = [
        f"{name}: no leaf of a {config.kind} module" for name in trees.flatten(foreign)
    ]
    needed = {"a", "b", *(("magnitude",) if config.use_dora else ())}
    for path, own in parts(leaves).items():
        wrong += [f"{path}/lora/{name}: missing" for name in needed - own.keys()]
        wrong += [
            f"{path}/lora/{name}: the config has use_dora = False"
            for name in own.keys() - needed
        ]
        rank = rank_of(config, path)
        for name, axis in (("a", -1), ("b", 0)):
            if name in own and np.shape(own[name])[axis] != rank:
                wrong.append(
                    f"{path}/lora/{name}: shape {np.shape(own[name])}, but the config "
                    f"has rank {rank} here"
                )
    for name, leaf in leaves.items():
        if name.endswith("/rows") and len(leaf) != length_of(config):
            wrong.append(
                f"{name}: {len(leaf)} rows, but the config has length "
                f"{length_of(config)}"
            )
    return wrong


def of_host(config: PeftConfig, leaves: Mapping[str, Any], host: Params) -> list[str]:
    """How the leaves differ from those of a fresh module on this host."""
    try:
        shapes = jax.eval_shape(
            lambda host, key: init_module(config, host, key).params,
            host,
            jax.random.key(0),
        )
    except ValueError as error:
        return [str(error)]
    expected = {name: list(x.shape) for name, x in trees.flatten(shapes).items()}
    # A bare host has no head, and what is replaced needs not be there.
    taken = trees.partition(dict(leaves), replaced(config) or r"(?!)")[0]
    known = trees.flatten(host)
    for name, leaf in trees.flatten(taken).items():
        if name not in known:
            expected[name] = list(leaf.shape)
    return of_record(expected, leaves, "a module of this config on this host")
