"""Inner products of experts: the facts of merges that live on angles and distances."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fusion_jax.merging.combine import total
from fusion_jax.merging.form import Block, Facts, Options


def gram(block: Block, facts: Facts, options: Options) -> jax.Array:
    """<delta_j, delta_k>, [K, K], of experts where there is no base: a `Sum`."""
    del facts, options
    values, axes = block.deltas, tuple(range(1, block.deltas.ndim))
    # Not a matrix product: with a side of K that is four times slower on a CPU.
    return jax.lax.map(lambda one: jnp.sum(values * one, axis=axes), values)


def squared_distances(block: Block, facts: Facts, options: Options) -> jax.Array:
    """||theta_j - theta_k||^2, [K, K], symmetric: a `Sum`."""
    del facts, options
    # From differences: an inner product of long vectors cannot tell close experts
    # apart, least of all beside an outlier.
    experts, axes = block.experts, tuple(range(1, block.experts.ndim))
    rows = jax.lax.map(
        lambda one: jnp.sum(jnp.square(experts - one), axis=axes), experts
    )
    return (rows + rows.T) / 2


def squared_norms(block: Block, facts: Facts, options: Options) -> jax.Array:
    """||delta_k||^2, [K]: a `Sum`."""
    del facts, options
    return jnp.sum(jnp.square(block.deltas), axis=tuple(range(1, block.deltas.ndim)))


def roots(squares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Norms from their squares, and which of them are not zero.

    A square so small that its quotients overflow (a norm below about 1e-15 in float32)
    is a zero. Gradients are finite, and 0 there.

    Args:
      squares: [...].

    Returns:
      ([...] norms, [...] bool).
    """
    present = squares > jnp.finfo(squares.dtype).tiny * 1e8
    return jnp.where(present, jnp.sqrt(jnp.where(present, squares, 1)), 0), present


def directions(inner: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Norms and cosines from inner products.

    Args:
      inner: [..., K, K].

    Returns:
      (norms [..., K], cosines [..., K, K] with exact ones on the diagonal and 0 where a
      norm is 0, [..., K] whether the norm is not 0).
    """
    norms, present = roots(jnp.diagonal(inner, axis1=-2, axis2=-1))
    divisor = jnp.where(present, norms, 1)
    cosines = inner / divisor[..., :, None] / divisor[..., None, :]
    cosines = jnp.where(
        jnp.eye(inner.shape[-1], dtype=bool), 1, jnp.clip(cosines, -1, 1)
    )
    both = present[..., :, None] & present[..., None, :]
    return norms, jnp.where(both, cosines, 0), present


def combine_rows(
    values: jax.Array, axis: int, weigh: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Combines each vector along one axis with weights from its own inner products.

    Args:
      values: [K, ...]; one vector, whatever the axis, where it has no two axes more.
      axis: -1 or -2, of the vectors.
      weigh: [..., K, K] inner products -> [..., K] weights.

    Returns:
      [...].
    """
    if values.ndim == 1:
        return combine_rows(values[:, None], -1, weigh)[0]
    axis = axis if values.ndim > 2 else -1
    inner = jax.lax.map(lambda one: jnp.sum(values * one, axis=axis), values)
    weights = weigh(jnp.moveaxis(inner, (0, 1), (-2, -1)))
    return total(jnp.expand_dims(jnp.moveaxis(weights, -1, 0), axis) * values)
