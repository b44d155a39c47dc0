"""Exactly k of n: counts, thresholds by sorted values, and who is kept."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.merging.form import Block, Threshold


def count(share: Any, size: Any) -> Any:
    """floor(share * size), where rounding of the product does not lose an entry.

    0.29 * 100 is 28.999999999999996 in float64 and means 29.

    Args:
      share: in [0, 1], a number or traced, any shape.
      size: n.

    Returns:
      The count, an int for a number, else int32 of the shape of `share`.
    """
    if isinstance(share, int | float):
        return min(max(math.floor(share * size + 1e-6), 0), size)
    if isinstance(share, np.ndarray | np.generic):
        wide = np.floor(np.asarray(share, np.float64) * size + 1e-6)
        return np.clip(wide, 0, size).astype(np.int64)
    return jnp.clip(jnp.floor(jnp.asarray(share) * size + 1e-6), 0, size).astype(
        jnp.int32
    )


def threshold(values: jax.Array, counts: jax.Array) -> Threshold:
    """The threshold that keeps the `counts` largest entries of each row.

    By a stable sort, so that the counts may be traced and mapped over.

    Args:
      values: [R, n].
      counts: [R] or a scalar, of 0..n.

    Returns:
      `Threshold` of [R].
    """
    num_rows, size = values.shape
    counts = jnp.broadcast_to(jnp.asarray(counts, jnp.int32), (num_rows,))
    order = jnp.argsort(-values, axis=1, stable=True)
    place = jnp.clip(counts - 1, 0, size - 1)[:, None]
    last = jnp.take_along_axis(order, place, axis=1)
    value = jnp.take_along_axis(values, last, axis=1)[:, 0]
    # None of them: above everything. All of them: below everything.
    value = jnp.where(counts <= 0, jnp.inf, jnp.where(counts >= size, -jnp.inf, value))
    return Threshold(jax.lax.stop_gradient(value), last[:, 0].astype(jnp.int32))


def kept(values: jax.Array, line: Threshold, block: Block) -> jax.Array:
    """Which entries are kept.

    Args:
      values: [R, ...] as the `Select` pass gave them for this block.
      line: the threshold of [R].
      block: the piece that `values` belongs to.

    Returns:
      [R, ...] bool.
    """
    return above(values, line, positions(block))


def above(values: jax.Array, line: Threshold, places: jax.Array) -> jax.Array:
    """`kept`, with the entries' positions in the leaf given, [...]."""
    column = (-1, *[1] * (values.ndim - 1))
    value, last = line.value.reshape(column), line.last.reshape(column)
    return (values > value) | ((values == value) & (places <= last))


def ranks(values: jax.Array, input_axis: int) -> jax.Array:
    """Ranks along the input axis, from 0, smallest first; equal values by position.

    Args:
      values: [K, ...]; the axis of leaves with fewer than two is their last.
      input_axis: of the others.

    Returns:
      [K, ...] int32.
    """
    if values.ndim == 1:
        return jnp.zeros(values.shape, jnp.int32)
    axis = input_axis if values.ndim > 2 else -1
    order = jnp.argsort(values, axis=axis, stable=True)
    return jnp.argsort(order, axis=axis, stable=True).astype(jnp.int32)


def positions(block: Block) -> jax.Array:
    """Positions in the flattened leaf, [...] int32."""
    shape = block.experts.shape[1:]
    inside = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
    return inside + jnp.asarray(block.start, jnp.int32)
