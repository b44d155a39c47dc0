"""Weights learned by gradient: jax.grad through the merge."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusion_jax import trees
from fusion_jax.evaluation.losses import loss_of, row_weight
from fusion_jax.search.points import Points
from fusion_jax.search.population import merge_candidates
from fusion_jax.types import Batch, Model


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
      steps: passes over dev, each about three evaluations of a candidate.
      learning_rate: of Adam.

    Returns:
      The weights of the step with the smallest dev loss.

    Reference: Wortsman et al. 2022, arXiv:2203.05482, appendix I (learned soup).
    """
    loss = loss_of(kind)
    groups = tuple((pattern, 0) for pattern, _ in points.groups)

    @jax.jit
    def total(logits, stack, shared, batch):
        weights = jax.nn.softmax(logits)[None, None]
        merged = jax.tree.map(lambda x: x[0], merge_candidates(stack, weights, groups))
        outputs = model.apply(trees.combine(merged, shared), batch)
        return jnp.sum(loss(outputs, batch) * row_weight(kind, batch))

    value_and_gradient = jax.jit(jax.value_and_grad(total))
    optimizer = optax.adam(learning_rate)
    logits = jnp.zeros(len(points.names))
    state = optimizer.init(logits)
    batches = jax.device_put(list(batches))
    count = float(sum(jnp.sum(row_weight(kind, batch)) for batch in batches))
    best, losses = (np.inf, logits), []
    for _ in range(steps):
        parts = [
            value_and_gradient(logits, points.stack, points.shared, batch)
            for batch in batches
        ]
        value = float(sum(v for v, _ in parts)) / count
        losses.append(value)
        if value < best[0]:
            best = (value, logits)
        gradient = sum(g for _, g in parts) / count
        updates, state = optimizer.update(gradient, state)
        logits = jnp.asarray(optax.apply_updates(logits, updates))
    return GradientWeights(np.asarray(jax.nn.softmax(best[1])), losses)
