"""Updates as products of two thin matrices: sums, and the nearest of lower rank."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Singular values below this share of the largest are rounding of float32 factors.
_ROUNDING = 1e-7


class Factors(NamedTuple):
    """An update a b of one layer's kernel, its scaling folded in.

    Attributes:
      a: [in, r] float64.
      b: [r, out] float64.
    """

    a: np.ndarray
    b: np.ndarray

    @property
    def rank(self) -> int:
        """Columns of a."""
        return self.a.shape[1]


def of_dense(update: np.ndarray) -> Factors:
    """An update [in, out] of any rank as factors: one of them is the identity."""
    rows, columns = update.shape
    if rows <= columns:
        return Factors(np.eye(rows), update)
    return Factors(update, np.eye(columns))


def concatenated(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """sum_k w_k a_k b_k, exactly: [a_1 ... a_K] [w_1 b_1; ...; w_K b_K].

    Args:
      parts: K updates of one layer, of any ranks.
      weights: K numbers.

    Returns:
      Factors of the sum of the ranks.
    """
    return Factors(
        np.concatenate([part.a for part in parts], axis=1),
        np.concatenate(
            [weight * part.b for part, weight in zip(parts, weights, strict=True)]
        ),
    )


def singular(update: Factors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The singular value decomposition of a b, without forming [in, out].

    a = Q_a R_a,  b' = Q_b R_b,  R_a R_b' = U S V'  [r, r]
    a b = (Q_a U) S (Q_b V)'

    Computed in float64.

    Returns:
      (left [in, n], values [n] largest first, right [n, out]), n <= r.
    """
    left, inner_left = np.linalg.qr(update.a)
    right, inner_right = np.linalg.qr(update.b.T)
    u, values, v = np.linalg.svd(inner_left @ inner_right.T, full_matrices=False)
    return left @ u, values, v @ right.T


def truncated(
    update: Factors, *, rank: int | None = None, energy: float | None = None
) -> tuple[Factors, float]:
    """The nearest update of a lower rank, in the Frobenius norm.

    a b ~ (U_r sqrt(S_r)) (sqrt(S_r) V_r')

    Args:
      update: what is to be approximated.
      rank: the most to keep; without it as many as count.
      energy: the least share of the squared norm to keep, in (0, 1]; without it all.

    Returns:
      (factors of rank at least 1, relative Frobenius error of what was dropped).
    """
    left, values, right = singular(update)
    squares = values**2
    total = float(squares.sum())
    kept = max(1, int(np.sum(values > _ROUNDING * values[0]))) if total else 1
    if energy is not None and total:
        enough = np.cumsum(squares) >= energy * total * (1 - 1e-12)
        kept = min(kept, int(np.argmax(enough)) + 1 if enough.any() else kept)
    if rank is not None:
        kept = min(kept, rank)
    root = np.sqrt(values[:kept])
    lost = float(np.sqrt(squares[kept:].sum() / total)) if total else 0.0
    return Factors(left[:, :kept] * root, root[:, None] * right[:kept]), lost
