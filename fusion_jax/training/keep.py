"""The parameters that outlive a step: their average along training, and the best."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.training.config import FitConfig
from fusion_jax.training.sharding import place, replicated
from fusion_jax.types import ParamStack

Kept = dict[str, Any]
"""'best' and, where the config averages, 'average': stacks like the trained leaves.

'averaged' int32 [] counts the epochs that are in the average.
"""


def start_keeping(config: FitConfig, params: ParamStack, mesh: Mesh) -> Kept:
    """Nothing kept yet; copies of `params` hold the places."""
    kept: Kept = {"best": _copied(params)}
    if config.average != "none":
        count = place(np.zeros((), np.int32), replicated(mesh))
        kept |= {"average": _copied(params), "averaged": count}
    return kept


def take_average(
    config: FitConfig, kept: Kept, params: ParamStack
) -> tuple[Kept, ParamStack]:
    """Takes an epoch's last parameters into the average.

    swa: a_n = a_(n-1) + (p_n - a_(n-1)) / n.
    ema: a_n = d a_(n-1) + (1 - d) p_n, with a_1 = p_1 and d = config.average_decay.

    Args:
      config: which average.
      kept: what is kept so far; donated.
      params: trained leaves [K, ...] at the end of an epoch.

    Returns:
      (kept, the parameters to be scored: the average, or `params` themselves).

    Reference: Izmailov et al., 2018, arXiv 1803.05407 (swa).
    """
    if config.average == "none":
        return kept, params
    decay = config.average_decay if config.average == "ema" else None
    average, count = _averaged(kept["average"], kept["averaged"], params, decay)
    return {**kept, "average": average, "averaged": count}, average


def keep_better(kept: Kept, candidate: ParamStack, better: jax.Array) -> Kept:
    """Replaces the best of the experts where `better` [K] is true; donates `kept`."""
    return {**kept, "best": _replaced(kept["best"], candidate, better)}


@jax.jit
def _copied(tree: ParamStack) -> ParamStack:
    return jax.tree.map(jnp.copy, tree)


def _averaged_of(
    average: ParamStack, count: jax.Array, params: ParamStack, decay: float | None
) -> tuple[ParamStack, jax.Array]:
    if decay is None:
        weight = 1.0 / (count + 1)
    else:
        weight = jnp.where(count == 0, 1.0, 1.0 - decay)
    mixed = jax.tree.map(lambda a, p: a + (p - a) * weight, average, params)
    return mixed, count + 1


def _replaced_of(
    best: ParamStack, candidate: ParamStack, better: jax.Array
) -> ParamStack:
    def choose(old: jax.Array, new: jax.Array) -> jax.Array:
        chosen = better.reshape((-1,) + (1,) * (old.ndim - 1))
        return jnp.where(chosen, new, old)

    return jax.tree.map(choose, best, candidate)


# Made once for the process, so that the next fit does not compile them again.
_averaged = jax.jit(_averaged_of, donate_argnums=0, static_argnums=3)
_replaced = jax.jit(_replaced_of, donate_argnums=0)
