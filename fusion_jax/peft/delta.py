"""What a low-rank module adds to a kernel: scalings, ranks, and the update itself."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.peft.config import PeftConfig, matches


def rank_of(config: PeftConfig, path: str) -> int:
    """Rank of a layer: of the first rank_pattern that matches its path, or `rank`."""
    for pattern, rank in config.rank_pattern:
        if matches(pattern, path):
            return int(rank)
    return config.rank


def alpha_of(config: PeftConfig, path: str) -> float:
    """Alpha of a layer, likewise."""
    for pattern, alpha in config.alpha_pattern:
        if matches(pattern, path):
            return float(alpha)
    return float(config.alpha)


def scaling(config: PeftConfig, path: str, rank: int | None = None) -> float:
    """The factor of a layer's update.

    s = alpha / r, or alpha / sqrt(r) with use_rslora.

    Args:
      config: alpha and patterns.
      path: of the layer, which the patterns are asked about.
      rank: r; default the config's for this layer.

    Reference: Hu et al. 2021, arXiv 2106.09685; rsLoRA: Kalajdzievski 2023, arXiv
    2312.03732.
    """
    rank = rank_of(config, path) if rank is None else rank
    return alpha_of(config, path) / (math.sqrt(rank) if config.use_rslora else rank)


def column_norms(kernel: jax.Array) -> jax.Array:
    """Norm of every output unit of a kernel [in, out] -> [out], float32."""
    return jnp.sqrt(jnp.square(kernel.astype(jnp.float32)).sum(0))


def delta(
    config: PeftConfig, name: str, leaves: Mapping[str, Any], kernel: jax.Array
) -> jax.Array:
    """What the module adds to a layer's kernel.

    s a b, and with a magnitude m (DoRA) m * (W + s a b) / norm(W + s a b) - W, the norm
    of each output unit.

    Args:
      config: of the module.
      name: path of the layer, such as 'encoder/layer_0/attention/query'.
      leaves: 'a' [in, r], 'b' [r, out], perhaps 'magnitude' [out].
      kernel: W [in, out] of the host; read with a magnitude alone.

    Returns:
      [in, out] float32.
    """
    a, b = (jnp.asarray(leaves[leaf], jnp.float32) for leaf in ("a", "b"))
    update = scaling(config, name, a.shape[-1]) * (a @ b)
    if "magnitude" not in leaves:
        return update
    host = jnp.asarray(kernel, jnp.float32)
    whole = host + update
    return leaves["magnitude"] / column_norms(whole) * whole - host
