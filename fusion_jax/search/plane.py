"""The plane through three experts: a grid of points on it, and a walk across it."""

from typing import NamedTuple

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.types import ParamStack


class Plane(NamedTuple):
    """A grid over the plane theta(u, v) = theta_i + u (theta_j - theta_i) + v (...).

    Attributes:
      experts: (i, j, k), the corners (0, 0), (1, 0), (0, 1).
      points: [M, 2] of (u, v).
      coefficients: [M, K] of the same points.
    """

    experts: tuple[int, int, int]
    points: np.ndarray
    coefficients: np.ndarray


def make_plane(
    experts: tuple[int, int, int],
    num_points: int,
    *,
    resolution: int = 9,
    margin: float = 0.25,
) -> Plane:
    """A regular grid with a margin around the triangle.

    Args:
      experts: indices of three experts.
      num_points: K.
      resolution: grid lines each way.
      margin: beyond 0 and 1, where the merge extrapolates.

    Returns:
      The plane.
    """
    line = np.linspace(-margin, 1 + margin, resolution)
    points = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    coefficients = np.zeros((len(points), num_points), np.float32)
    i, j, k = experts
    coefficients[:, i] = 1 - points.sum(1)
    coefficients[:, j] = points[:, 0]
    coefficients[:, k] = points[:, 1]
    return Plane(experts, points, coefficients)


def gram(stack: ParamStack) -> np.ndarray:
    """[K, K] float64 inner products of the experts' parameters.

    They are taken relative to the first expert, whose row and column are zero: only
    differences matter on a plane, and they keep their digits so.
    """
    total = np.zeros((trees.stack_size(stack),) * 2)
    for leaf in jax.tree.leaves(stack):
        flat = np.asarray(leaf, np.float32).reshape(len(leaf), -1)
        flat = flat - flat[:1]
        total += flat @ flat.T
    return total


def project(
    coefficients: np.ndarray, products: np.ndarray, experts: tuple[int, int, int]
) -> np.ndarray:
    """The nearest points of the plane, in its coordinates.

    (u, v) = argmin || sum_m c_m theta_m - theta(u, v) ||, a least-squares problem in
    the inner products of the experts alone.

    Args:
      coefficients: [S, K], rows of sum one.
      products: [K, K] of `gram`.
      experts: of the plane.

    Returns:
      [S, 2] float64.
    """
    i, j, k = experts
    count = len(products)
    axes = np.zeros((2, count))
    axes[0, [j, i]] = 1, -1
    axes[1, [k, i]] = 1, -1
    origin = np.zeros(count)
    origin[i] = 1
    inner = axes @ products @ axes.T
    right = (np.asarray(coefficients, np.float64) - origin) @ products @ axes.T
    return np.linalg.lstsq(inner, right.T, rcond=None)[0].T
