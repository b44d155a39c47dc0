"""The train state: a dict of arrays, every one with a leading expert axis."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from fusion_jax.training.config import FitConfig
from fusion_jax.training.optimizer import make_optimizer
from fusion_jax.training.sharding import place, replicated, shardings
from fusion_jax.trees import Rules
from fusion_jax.types import Params, ParamStack

State = dict[str, Any]
"""'params' and 'opt_state' of the trained leaves [K, ...], and [K] counters.

'step' int32: updates done in this phase; 'loss_sum' and 'loss_steps' float32: of the
epoch so far; 'bad_step' int32: first step with a loss or gradient that is not finite,
-1 if none. A plain dict restores without importing a class.
"""


def create_state(
    params: ParamStack,
    config: FitConfig,
    rules: Rules[PartitionSpec],
    mesh: Mesh,
) -> State:
    """A state at step 0, laid over the mesh.

    Args:
      params: trained leaves [K, ...] float32, already in place; they become part of
        the state, which is donated: pass a copy.
      config: names the optimizer.
      rules: partition rules of leaves without expert axis.
      mesh: mesh of `make_mesh`.
    """
    size = len(jax.tree.leaves(params)[0])
    optimizer = make_optimizer(config, 1)
    shapes = jax.eval_shape(jax.vmap(optimizer.init), params)
    # The moments lie as their parameters do, whatever the optimizer is called.
    where = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes,
        shardings(params, rules, mesh, stacked=True),
        transform_non_params=lambda _: replicated(mesh),
    )
    # Adam starts at zero in every moment and count.
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    counters = {
        "step": np.zeros(size, np.int32),
        "loss_sum": np.zeros(size, np.float32),
        "loss_steps": np.zeros(size, np.float32),
        "bad_step": np.full(size, -1, np.int32),
    }
    return {
        "params": params,
        "opt_state": place(zeros, where),
        **place(counters, replicated(mesh)),
    }


def reset_epoch(state: State, mesh: Mesh) -> State:
    """The state with the epoch's sums back at 0."""
    zeros = np.zeros(state["step"].shape, np.float32)
    sums = {name: place(zeros, replicated(mesh)) for name in ("loss_sum", "loss_steps")}
    return {**state, **sums}


def as_float32(tree: Params) -> Params:
    """Floating leaves in float32: what is trained is kept so whatever it came in."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        tree,
    )
