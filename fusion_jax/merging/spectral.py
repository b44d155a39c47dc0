"""Singular vectors of task matrices, and what the merges of them have in common."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.merging.combine import contract, moved
from fusion_jax.merging.form import Block, Facts, Form, Options

EXCLUDED = r".*(embed|embedding|wte|wpe|text_projection).*"
"""Leaves that get the mean though they are matrices: their rows are looked up, or they
close the model."""


class Triplets(NamedTuple):
    """Singular triplets, the largest first.

    Attributes:
      left: [..., in, r], orthonormal columns; 0 where the value is 0.
      values: [..., r], 0 where they are rounding.
      right: [..., out, r] like `left`.
    """

    left: jax.Array
    values: jax.Array
    right: jax.Array

    def first(self, rank: int) -> "Triplets":
        """The largest `rank` of them."""
        return Triplets(
            self.left[..., :rank], self.values[..., :rank], self.right[..., :rank]
        )


def decompose(matrices: jax.Array) -> Triplets:
    """The singular value decomposition of [..., in, out], with r = min(in, out).

    Values that are rounding, about 1e-6 of the largest for small matrices, have
    arbitrary vectors: both are set to 0, so that nothing depends on the library.
    """
    # Over the largest entry, as squares of tiny ones may vanish on the way.
    size = jnp.max(jnp.abs(matrices), axis=(-2, -1), keepdims=True)
    size = jnp.where(size == 0, 1, size)
    left, values, right = jnp.linalg.svd(matrices / size, full_matrices=False)
    real = (values > _rounding(matrices) * values[..., :1])[..., None, :]
    return Triplets(
        jnp.where(real, left, 0),
        jnp.where(real[..., 0, :], values, 0) * size[..., 0],
        jnp.where(real, jnp.swapaxes(right, -2, -1), 0),
    )


def orthogonalised(columns: jax.Array) -> jax.Array:
    """The polar factor P Q^T of U = P S Q^T: the nearest orthonormal columns to U's.

    Directions whose singular value is rounding are left out, so that columns that are 0
    stay 0 and equal columns stay equal.

    Args:
      columns: [n, r].

    Returns:
      [n, r].
    """
    left, values, right = jnp.linalg.svd(columns, full_matrices=False)
    real = values > _rounding(columns) * values[:1]
    return matmul(jnp.where(real, left, 0), right)


def matmul(one: jax.Array, two: jax.Array) -> jax.Array:
    """The product, which a TPU would take of operands rounded to bfloat16."""
    return jnp.matmul(one, two, precision="highest")


def side_by_side(columns: jax.Array) -> jax.Array:
    """[K, n, r] -> [n, K r], expert after expert."""
    return jnp.moveaxis(columns, 0, 1).reshape(columns.shape[1], -1)


def matrix_form(
    merge: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    exclude: str,
    input_axis: int,
) -> Form:
    """The form of a merge of task matrices; all other leaves get the mean.

    theta = theta_0 + scale * merge(delta, c); mean: theta_0 + scale * c delta / K

    Args:
      merge: `(deltas [K, in, out], coefficients [K]) -> [in, out]`.
      exclude: regular expression of the names, in full, of matrices that get the mean.
      input_axis: -2 or -1.

    Raises:
      ValueError: another axis.
    """
    if input_axis not in (-2, -1):
        raise ValueError(f"input_axis: {input_axis} is not one of -2, -1")
    excluded = re.compile(exclude)

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        deltas, row = block.deltas, block.coefficients.astype(block.deltas.dtype)
        if len(block.shape) != 2 or 0 in block.shape or excluded.fullmatch(block.name):
            merged = contract(row / len(deltas), deltas)
        elif input_axis == -1:
            merged = merge(jnp.swapaxes(deltas, -2, -1), row).T
        else:
            merged = merge(deltas, row)
        return moved(block, merged, options["scale"])

    return Form(apply, unit="leaf", input_axis=input_axis, by_name=True)


def _rounding(matrices: jax.Array) -> float:
    # Of float32 also where float64 is streamed: both must see the same directions. By
    # the root of the size, as errors of a decomposition grow no faster in practice, and
    # a long tail of small values is real.
    return 4 * math.sqrt(max(matrices.shape[-2:])) * float(jnp.finfo(jnp.float32).eps)
