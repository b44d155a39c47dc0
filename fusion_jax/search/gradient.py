"""Weights learned by gradient: jax.grad through the merge."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusion_jax import trees
from fusion_jax.evaluation.losses import loss_of, row_weight
from fusion_jax.search.points import Points
from fusion_jax.search.ways import merge_candidates
from fusion_jax.types import Batch, Model, Params

EVALUATIONS_OF_A_STEP = 4
"""Cost of one step in evaluations of a candidate, measured on a CPU (3 to 5)."""


class GradientWeights(NamedTuple):
    """Weights and the dev loss before each step.

    Attributes:
      coefficients: [K].
      losses: one number a step.
    """

    coefficients: np.ndarray
    losses: list[float]


def gradient_weights(
    model: Model,
    kind: str,
    points: Points,
    batches: Sequence[Batch],
    *,
    steps: int = 20,
    learning_rate: float = 0.1,
) -> GradientWeights:
    """Adam on the logits of simplex weights, on the whole dev set at each step.

    w = softmax(z), z <- Adam(d/dz mean_n loss(theta(w); x_n)), from w uniform

    Args:
      model: pure functions.
      kind: of the task, for its loss.
      points: K points; one weight each for the whole tree.
      batches: of the dev split, 'mask' [B] marks real rows.
      steps: passes over dev, each at the cost of `EVALUATIONS_OF_A_STEP`.
      learning_rate: of Adam.

    Returns:
      The weights of the step with the smallest dev loss.

    Reference: Wortsman et al. 2022, arXiv:2203.05482, appendix I (learned soup).
    """
    loss = loss_of(kind)
    groups = tuple((pattern, 0) for pattern, _ in points.groups)

    # What is no number that could have a gradient is equal in every candidate.
    leaves = trees.flatten(points.stack)
    floating = {
        n: x for n, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)
    }
    rest = {name: x[0] for name, x in leaves.items() if name not in floating}
    fixed = trees.combine(points.shared, trees.unflatten(rest))
    stack = trees.unflatten(floating)

    @jax.jit
    def merge(logits, stack):
        weights = jax.nn.softmax(logits)[None, None]
        return jax.tree.map(lambda x: x[0], merge_candidates(stack, weights, groups))

    @jax.jit
    @jax.value_and_grad
    def of_merged(merged, fixed, batch):
        outputs = model.apply(trees.combine(merged, fixed), batch)
        return jnp.sum(loss(outputs, batch) * row_weight(kind, batch))

    @jax.jit
    def of_logits(logits, stack, gradient):
        # The merge is linear: one product with each point, whatever the batches. The
        # products have a large part in common, which softmax takes away again: they
        # are summed as exactly as float32 goes.
        by_leaf = jax.tree.map(
            lambda points, g: jnp.dot(
                points.reshape(len(points), -1).astype(jnp.float32),
                g.reshape(-1),
                precision="highest",
            ),
            stack,
            gradient,
        )
        by_weight = sum(jax.tree.leaves(by_leaf))
        return jax.vjp(jax.nn.softmax, logits)[1](by_weight)[0]

    optimizer = optax.adam(learning_rate)
    logits = jnp.zeros(len(points.names))
    state = optimizer.init(logits)
    batches = jax.device_put(list(batches))
    count = float(sum(jnp.sum(row_weight(kind, batch)) for batch in batches))
    best, losses = (np.inf, logits), []
    for _ in range(steps):
        merged = merge(logits, stack)
        total = jnp.zeros(())
        gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), merged)
        for batch in batches:
            part, more = of_merged(merged, fixed, batch)
            total += part
            gradient = _add(gradient, more)
        value = float(total) / count
        losses.append(value)
        if value < best[0]:
            best = (value, logits)
        mean = of_logits(logits, stack, gradient) / count
        updates, state = optimizer.update(mean, state)
        logits = jnp.asarray(optax.apply_updates(logits, updates))
    return GradientWeights(np.asarray(jax.nn.softmax(best[1])), losses)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: Params, more: Params) -> Params:
    return jax.tree.map(jnp.add, total, more)
