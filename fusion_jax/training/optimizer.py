"""AdamW with warm-up, schedule, clipping; the number of steps may be traced."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fusion_jax.training.config import FitConfig
from fusion_jax.types import Params


def learning_rate(
    config: FitConfig, step: Any, total_steps: Any, peak: Any
) -> jax.Array:
    """The rate of a step, counted from 0.

    r(s) = peak * min((s + 1) / w, 1) * d(max(s - w, 0) / (n - w)), w = ceil(f n),
    with d(x) = 1 - x (linear), (1 + cos(pi x)) / 2 (cosine) or 1 (constant).
    No step has rate 0.

    Args:
      config: schedule and warm-up fraction f.
      step: s, int scalar; it, n and the peak may be traced.
      total_steps: n, int scalar; experts of a stack have their own.
      peak: float scalar.

    Returns:
      float32 scalar.
    """
    total = jnp.asarray(total_steps, jnp.float32)
    done = jnp.asarray(step, jnp.float32)
    warmup = jnp.ceil(config.warmup_fraction * total)
    rising = jnp.minimum((done + 1) / jnp.maximum(warmup, 1), 1)
    past = jnp.clip((done - warmup) / jnp.maximum(total - warmup, 1), 0, 1)
    if config.schedule == "linear":
        falling = 1 - past
    elif config.schedule == "cosine":
        falling = 0.5 * (1 + jnp.cos(jnp.pi * past))
    else:
        falling = jnp.ones_like(past)
    return peak * rising * falling


def make_optimizer(
    config: FitConfig, total_steps: Any, peak: Any = None
) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decay of matrices, the scheduled rate.

    Args:
      config: clip_norm, weight_decay, and what `learning_rate` reads.
      total_steps: steps of the whole fit; int scalar, may be traced.
      peak: peak learning rate, may be traced; default config.learning_rate.

    Returns:
      The optax transformation. Its state has float32 moments for the leaves that it
      is given, and the count of its own updates.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else None
    decay = config.weight_decay
    peak = config.learning_rate if peak is None else peak
    parts = (
        clip,
        optax.scale_by_adam(),
        optax.add_decayed_weights(decay, mask=decays) if decay else None,
        optax.scale_by_learning_rate(
            lambda step: learning_rate(config, step, total_steps, peak)
        ),
    )
    return optax.chain(*(part for part in parts if part is not None))


def decays(params: Params) -> Params:
    """Which leaves are decayed: matrices; neither biases nor norms."""
    return jax.tree.map(lambda x: jnp.ndim(x) >= 2, params)
