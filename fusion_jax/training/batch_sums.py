"""Second moments of what linear layers read of one batch, and of gradients there."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.evaluation.losses import loss_of
from fusion_jax.merging.layer_inputs import (
    InputMoments,
    Panels,
    symmetric_product,
    token_weights,
)
from fusion_jax.types import Batch, Params

Sums = dict[str, dict[str, Any]]
"""'inputs' by input, each a `Moment`; 'outputs', panels of an [out, out], by kernel
leaf."""


def batch_sums(
    apply: Callable[..., Any],
    layers: str,
    kind: str | None,
    params: Params,
    batch: Batch,
) -> tuple[Sums, dict[str, str]]:
    """(the sums over one batch, kernel leaf -> input)."""
    moments = InputMoments(batch, layers)
    outputs: dict[str, Panels] = {}
    if kind is None:
        apply(params, batch, tap=moments)
        found = moments.sums
    else:
        # At zero these change nothing, and the gradient by them is that at the outputs.
        zeros = _output_zeros(apply, layers, params, batch)

        def likelihood(moved: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
            def tap(name: str, x: jax.Array, y: jax.Array) -> jax.Array | None:
                moments(name, x, y)
                return y + moved[name].astype(y.dtype) if name in moved else None

            losses = loss_of(kind)(apply(params, batch, tap=tap), batch)
            return -jnp.sum(jnp.where(row_mask(batch) > 0, losses, 0)), moments.sums

        # No row's loss depends on another row, so the gradient of the sum at a row's
        # tokens is the gradient of that row's own log-likelihood: nothing is averaged
        # before it is multiplied with itself.
        gradients, found = jax.grad(likelihood, has_aux=True)(zeros)
        for name, g in gradients.items():
            weights = token_weights(g.shape, batch)
            g = g.reshape(-1, g.shape[-1])
            outputs[name] = symmetric_product(jnp.where(weights[:, None] > 0, g, 0))
    return {"inputs": found, "outputs": outputs}, moments.readers


def _output_zeros(
    apply: Callable[..., Any], layers: str, params: Params, batch: Batch
) -> dict[str, jax.Array]:
    """Float32 zeros like the output of every layer that the pattern matches."""
    pattern = re.compile(layers)
    shapes: dict[str, tuple[int, ...]] = {}

    def tap(name: str, x: jax.Array, y: jax.Array) -> None:
        del x
        if pattern.fullmatch(name):
            shapes[name] = y.shape

    jax.eval_shape(lambda: apply(params, batch, tap=tap))
    return {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}


def row_mask(batch: Batch) -> Any:
    """[B]: 1 for real rows; all are where the batch does not say."""
    return batch.get("mask", np.ones(len(batch["attention_mask"]), np.float32))
