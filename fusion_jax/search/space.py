"""Genome spaces: what the search strategy moves, and the weights it stands for."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Space(NamedTuple):
    """A map from genomes to coefficients.

    Attributes:
      name: key in `SPACES`.
      dimension: D, numbers in a genome.
      start: [D] float32, the genome of the uniform soup.
      spread: standard deviation of the first generation, in genome units.
      coefficients: `[..., D] -> [..., G, K]` float32.
    """

    name: str
    dimension: int
    start: np.ndarray
    spread: float
    coefficients: Callable[[jax.Array], jax.Array]


def simplex(num_points: int, num_groups: int = 1) -> Space:
    """Weights that are positive and sum to one.

    c = softmax([z, 0]) in each group; the last coordinate is fixed, since a softmax
    does not see a shift and a strategy would drift along it.

    Args:
      num_points: K.
      num_groups: G.
    """

    def coefficients(genome: jax.Array) -> jax.Array:
        rows = genome.reshape(*genome.shape[:-1], num_groups, num_points - 1)
        rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 1)])
        return jax.nn.softmax(rows, axis=-1)

    dimension = num_groups * (num_points - 1)
    return Space(
        "simplex", dimension, np.zeros(dimension, np.float32), 1.0, coefficients
    )


def affine(num_points: int, num_groups: int = 1) -> Space:
    """Weights of any sign that sum to one: the plane through the points.

    c = z + (1 - sum z) / K

    Args:
      num_points: K.
      num_groups: G.
    """

    def coefficients(genome: jax.Array) -> jax.Array:
        rows = genome.reshape(*genome.shape[:-1], num_groups, num_points)
        return rows + (1 - rows.sum(-1, keepdims=True)) / num_points

    dimension = num_groups * num_points
    start = np.full(dimension, 1 / num_points, np.float32)
    return Space("affine", dimension, start, 0.2, coefficients)


def free(num_points: int, num_groups: int = 1) -> Space:
    """Weights as they are, c = z; needs the pretrained model among the points.

    Args:
      num_points: K without the base.
      num_groups: G.
    """

    def coefficients(genome: jax.Array) -> jax.Array:
        return genome.reshape(*genome.shape[:-1], num_groups, num_points)

    dimension = num_groups * num_points
    start = np.full(dimension, 1 / num_points, np.float32)
    return Space("free", dimension, start, 1 / 6, coefficients)


def box(num_points: int, num_groups: int = 1, limit: float = 1.5) -> Space:
    """Weights between -limit and limit; needs the pretrained model among the points.

    c = limit tanh(z / limit), the identity near zero, so that the strategy sees
    no wall.

    Args:
      num_points: K without the base.
      num_groups: G.
      limit: largest absolute weight; 1.5 in LoraHub (Huang et al. 2023,
        arXiv:2307.13269).
    """

    def coefficients(genome: jax.Array) -> jax.Array:
        rows = genome.reshape(*genome.shape[:-1], num_groups, num_points)
        return limit * jnp.tanh(rows / limit)

    dimension = num_groups * num_points
    start = np.full(dimension, limit * np.arctanh(1 / num_points / limit), np.float32)
    return Space("box", dimension, start, 0.2, coefficients)


SPACES: dict[str, Callable[..., Space]] = {
    "simplex": simplex,
    "affine": affine,
    "free": free,
    "box": box,
}
"""Spaces by name; 'free' and 'box' do not fix the sum and so need a base."""

NEEDS_BASE = frozenset({"free", "box"})


def around_base(space: Space) -> Space:
    """Prepends the base: theta = (1 - sum_k c_k) theta_0 + sum_k c_k theta_k.

    This is task arithmetic written as one linear combination of K + 1 points, the
    base first, so that one engine serves all spaces.
    """

    def coefficients(genome: jax.Array) -> jax.Array:
        rows = space.coefficients(genome)
        return jnp.concatenate([1 - rows.sum(-1, keepdims=True), rows], axis=-1)

    return space._replace(coefficients=coefficients)
