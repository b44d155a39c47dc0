"""Modules in the form that can leave their training: PiSSA as LoRA, prefixes flat."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from fusion_jax.peft.delta import delta
from fusion_jax.peft.lora import parts
from fusion_jax.peft.module import Module
from fusion_jax.peft.prefix import flat_rows
from fusion_jax.trees import flatten, unflatten
from fusion_jax.types import Params


def residual_host(host: Params, start: Module) -> Params:
    """The host that a PiSSA module is trained on: W - s a_0 b_0.

    Args:
      host: tree of the host.
      start: the module as `init_module` made it.

    Returns:
      Tree of the host's names and dtypes; with `start` it computes what `host` does.

    Reference: Meng et al. 2024, arXiv 2404.02948.
    """
    leaves = dict(flatten(host))
    for path, own in parts(start.params).items():
        name = f"{path}/kernel" if f"{path}/kernel" in leaves else f"{path}/embedding"
        kernel = jnp.asarray(leaves[name])
        rest = kernel.astype(jnp.float32) - delta(start.config, path, own, kernel)
        leaves[name] = rest.astype(kernel.dtype)
    return unflatten(leaves)


def portable(module: Module, start: Module) -> Module:
    """A trained PiSSA module as plain LoRA of rank 2 r on the original host.

    a' = [a, a_0], b' = [b; -b_0], so that s a' b' = s a b - s a_0 b_0.

    Args:
      module: trained on `residual_host(host, start)`.
      start: as `init_module` made it.

    Returns:
      A module of kind lora with init 'default'; other leaves as they are.
    """
    begun = parts(start.params)
    leaves = dict(flatten(module.params))
    for path, own in parts(module.params).items():
        first = begun[path]
        leaves[f"{path}/lora/a"] = jnp.concatenate([own["a"], first["a"]], axis=-1)
        leaves[f"{path}/lora/b"] = jnp.concatenate([own["b"], -first["b"]], axis=-2)
    config = module.config
    # s stays what it was: alpha grows as r does, or as its root.
    grown = math.sqrt(2) if config.use_rslora else 2
    config = dataclasses.replace(
        config,
        init="default",
        rank=2 * config.rank,
        alpha=grown * config.alpha,
        rank_pattern=tuple((p, 2 * rank) for p, rank in config.rank_pattern),
        alpha_pattern=tuple((p, grown * alpha) for p, alpha in config.alpha_pattern),
    )
    return module._replace(config=config, params=unflatten(leaves))


def flat_prefix(module: Module) -> Module:
    """A prefix whose networks are dropped: the rows that they give, exactly.

    Args:
      module: of kind prefix, with networks or flat already.
    """
    config: Any = dataclasses.replace(module.config, mlp_width=0)
    return module._replace(config=config, params=flat_rows(module.params))
