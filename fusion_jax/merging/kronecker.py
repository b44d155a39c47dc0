"""Sums of Kronecker products solved by conjugate gradients, without the matrix."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


def factors(
    row: jax.Array,
    inputs: jax.Array,
    outputs: jax.Array,
    alpha: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """The left_k and right_k of  sum_k c_k G~_k X O~_k,  free of the unit of the Grams.

    G~ = alpha G + (1 - alpha) diag(G), O~ likewise. Gradients of 1e-8 have a Gram of
    1e-16, and its product with what is small in the other factor would soon be no
    float32. So each Gram is divided by the mean of its diagonal, and the ratios between
    experts are kept apart.

    Args:
      row: c, [K].
      inputs: G_k, [K, in, in], symmetric and positive semi-definite.
      outputs: O_k, [K, out, out], likewise.
      alpha: scale of the off-diagonal.

    Returns:
      (left [K, in, in], right [K, out, out]), times a number that all k share.
    """
    sizes, scaled = [], []
    for grams in (inputs, outputs):
        diagonals = jnp.diagonal(grams, axis1=1, axis2=2)
        size = jnp.mean(diagonals, axis=1)
        eye = jnp.eye(grams.shape[1], dtype=bool)
        sizes.append(size)
        scaled.append(
            jnp.where(eye, grams, alpha * grams) / _positive(size)[:, None, None]
        )
    # One after the other: of small numbers no two are multiplied.
    weights = _ratios(_ratios(row * _ratios(sizes[0])) * _ratios(sizes[1]))
    return weights[:, None, None] * scaled[0], scaled[1]


def correction(
    left: jax.Array, right: jax.Array, gaps: jax.Array, iterations: int
) -> jax.Array:
    """X of  sum_k left_k X right_k = sum_k left_k gaps_k right_k,  from X = 0.

    The matrix of in * out unknowns is never built: a step costs K products of
    in * out * (in + out). No step leaves the range of the system, so what it does not
    see stays 0.

    Args:
      left: [K, in, in].
      right: [K, out, out].
      gaps: [K, in, out].
      iterations: at most so many; fewer where the residual is 1e-7 of the first one,
        1e-12 in float64.

    Returns:
      [in, out] in the dtype of `gaps`; NaN where the Grams are not finite.
    """

    def summed(parts: Sequence[jax.Array] | jax.Array) -> jax.Array:
        found = jnp.zeros(gaps.shape[1:], gaps.dtype)
        for a, x, b in zip(left, parts, right, strict=True):
            one = jnp.matmul(a, x, precision="highest")
            found = found + jnp.matmul(one, b, precision="highest")
        return found

    target = summed(gaps)
    # Squares are summed: those of 1e-30 would be 0.
    largest = jnp.max(jnp.abs(target))
    unit = jnp.where(largest == 0, 1, largest)
    found = _conjugate_gradients(
        lambda x: summed([x] * len(left)), target / unit, iterations
    )
    # No step is taken towards what is not a number; the start must not hide that.
    return jnp.where(jnp.isfinite(unit), unit * found, jnp.nan)


class _Search(NamedTuple):
    found: jax.Array
    residual: jax.Array
    direction: jax.Array
    square: jax.Array  # of the residual
    step: jax.Array


def _conjugate_gradients(
    operator: Callable[[jax.Array], jax.Array], target: jax.Array, iterations: int
) -> jax.Array:
    """The x of `operator(x) = target`, from 0."""
    least = max(float(jnp.finfo(target.dtype).eps), 1e-12)
    first = jnp.sum(target**2)

    def going(at: _Search) -> jax.Array:
        return (at.step < iterations) & (at.square > least**2 * first)

    def advance(at: _Search) -> _Search:
        image = operator(at.direction)
        curvature = jnp.sum(at.direction * image)
        # Not so after the last digit, or where coefficients have mixed signs: what was
        # found so far stays.
        sound = curvature > 0
        length = jnp.where(sound, at.square / jnp.where(sound, curvature, 1), 0)
        residual = at.residual - length * image
        square = jnp.sum(residual**2)
        return _Search(
            at.found + length * at.direction,
            residual,
            residual + square / at.square * at.direction,
            square,
            jnp.where(sound, at.step + 1, iterations),
        )

    begin = _Search(jnp.zeros_like(target), target, target, first, jnp.int32(0))
    return jax.lax.while_loop(going, advance, begin).found


def _positive(x: jax.Array) -> jax.Array:
    """The same, 1 in the place of 0: a divisor."""
    return jnp.where(x > 0, x, 1)


def _ratios(x: jax.Array) -> jax.Array:
    """To the largest magnitude."""
    return x / _positive(jnp.max(jnp.abs(x)))
