"""Symmetric semi-definite systems on the host, in float64, near a prior of zero."""

from typing import NamedTuple

import numpy as np

_ITERATIONS = 100


class Solution(NamedTuple):
    """The solution of one system.

    Attributes:
      x: [n, m] float64.
      residual: [n, m], what is left of the right side; None where the system was
        factorised.
      condition: estimate of the condition number (1-norm); infinite where the system
        was not factorised.
    """

    x: np.ndarray
    residual: np.ndarray | None
    condition: float


def solve(
    matrix: np.ndarray,
    right: np.ndarray,
    mean: float,
    alpha: float,
    ridge: float,
    *,
    unit: float,
) -> Solution:
    """Solves (alpha A + (1 - alpha) diag(A) + ridge * mean * I) x = mean * b.

    Rows whose diagonal is 0 are dead: there x is exactly 0. The system is factorised by
    Cholesky, in one copy of A; where it is singular to rounding, at most 100 iterations
    of conjugate gradients from 0, preconditioned by the diagonal, take its place.

    Args:
      matrix: A, [n, n] float64, symmetric and positive semi-definite; not changed.
      right: b, [n, m] float64 in Fortran order; its dead rows are set to 0.
      mean: of the diagonal of A, or 1 where that is 0.
      alpha: in [0, 1].
      ridge: not negative.
      unit: rounding unit that A was stored with, such as that of float32.
    """
    diagonal = matrix.diagonal() / mean
    dead = diagonal == 0
    right[dead] = 0
    whole = diagonal + np.where(dead, 1.0, ridge)
    found = _factorised(matrix, right, alpha / mean, whole, unit)
    if found is None:
        found = _iterated(matrix, right, alpha / mean, whole, unit)
    found.x[dead] = 0
    return found


def _factorised(
    matrix: np.ndarray, right: np.ndarray, scale: float, whole: np.ndarray, unit: float
) -> Solution | None:
    """By Cholesky; None where that is not sound."""
    from scipy.linalg import get_lapack_funcs

    # The transpose of a symmetric matrix is the same in the order that LAPACK
    # overwrites without a copy.
    system = (matrix * scale).T
    np.fill_diagonal(system, whole)
    norm_of, factorise, solve_by, condition_by = get_lapack_funcs(
        ("lange", "potrf", "potrs", "pocon"), (system,)
    )
    norm = norm_of("1", system)
    factor, info = factorise(system, lower=1, clean=0, overwrite_a=1)
    # A pivot is what is left of an entry of the diagonal. This little is noise: of the
    # factorisation, or of a matrix that was stored in float32.
    noise = max(32 * np.sqrt(len(whole)) * np.finfo(np.float64).eps, 4 * unit)
    if info or not (np.diagonal(factor) ** 2 > noise * whole).all():
        return None
    x, _ = solve_by(factor, right, lower=1)
    inverse, _ = condition_by(factor, norm, uplo="L")
    return Solution(x, None, float(1 / inverse) if inverse > 0 else np.inf)


def _iterated(
    matrix: np.ndarray, right: np.ndarray, scale: float, whole: np.ndarray, unit: float
) -> Solution:
    """By conjugate gradients from 0, each column with steps of its own."""
    # The system is scale * A, but for its diagonal.
    inside = (whole - scale * matrix.diagonal())[:, None]
    inverse = (1 / whole)[:, None]
    x, residual = np.zeros_like(right), right.copy(order="K")
    direction = inverse * residual
    height = _products(residual, direction)
    # Below the rounding of A there is only noise to follow.
    enough = height * max(4 * unit, 1e-13) ** 2
    for _ in range(_ITERATIONS):
        going = height > enough
        if not going.any():
            break
        product = matrix @ direction
        product *= scale
        product += inside * direction
        curve = _products(direction, product)
        going &= curve > 0
        step = _ratio(height, curve, going)
        x += step * direction
        residual -= step * product
        ahead = inverse * residual
        before, height = height, np.where(going, _products(residual, ahead), 0)
        direction *= _ratio(height, before, going)
        direction += ahead
    return Solution(x, residual, np.inf)


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """<x_o, y_o> for each column, [m]."""
    return np.einsum("io,io->o", x, y)


def _ratio(x: np.ndarray, y: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(x, y, where=where, out=np.zeros_like(x))
