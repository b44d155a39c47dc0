"""Smaller and noisier forms of a Gram: packed, block diagonal, low rank, with noise.

A Gram here is [n, n], symmetric and positive semi-definite. An extended one is
M = [[G, s], [s^T, c]]: the moments of [x; 1], s the sum or mean of x, c the count or 1.
"""

import math

import numpy as np

_ASYMMETRY = 1e-3  # of the largest entry: far above what float32 sums leave


def packed(m: np.ndarray) -> np.ndarray:
    """The upper triangle of a symmetric matrix, row by row, with the diagonal.

    Args:
      m: [n, n].

    Returns:
      [n (n + 1) / 2] float32.

    Raises:
      ValueError: `m` is not square, not symmetric or not finite.
    """
    m = _symmetric(m, "packed")
    rows = [row[i:] for i, row in enumerate(np.asarray(m, np.float32))]
    return np.concatenate(rows) if rows else np.zeros(0, np.float32)


def unpacked(v: np.ndarray, n: int) -> np.ndarray:
    """The symmetric matrix of an upper triangle: the inverse of `packed`.

    Args:
      v: [n (n + 1) / 2].
      n: rows of the matrix.

    Returns:
      [n, n] float32, symmetric to the last bit.

    Raises:
      ValueError: `v` is not the triangle of an [n, n] matrix.
    """
    v = np.asarray(v, np.float32)
    if v.shape != (n * (n + 1) // 2,):
        raise ValueError(
            f"unpacked: a triangle of n={n} has {n * (n + 1) // 2} entries; this has "
            f"shape {v.shape}"
        )
    m = np.empty((n, n), np.float32)
    start = 0
    for i in range(n):
        m[i, i:] = m[i:, i] = v[start : start + n - i]
        start += n - i
    return m


def block_diagonal(m: np.ndarray, size: int, *, extended: bool = True) -> np.ndarray:
    """A Gram of blocks of inputs that know nothing of one another.

    Of an extended Gram the last row and column stay too, as the constant belongs to
    the regression of every block. Zeros between the blocks would then leave no Gram
    (they contradict the means), so there stand s_i s_j / c: the blocks are
    uncorrelated, and the covariance is what is block diagonal. It is semi-definite
    where M is, and holds no more numbers than the blocks and s.

    Args:
      m: [n, n].
      size: inputs of a block; the last may have fewer.
      extended: whether the last row and column are those of the constant. False: a
        plain Gram, with zeros between the blocks.

    Returns:
      [n, n], the dtype of `m`; what is inside a block is as it was.

    Raises:
      ValueError: `m` is not square, not symmetric or not finite, or `size` is
        below 1.
    """
    m = _symmetric(m, "block_diagonal")
    if size < 1:
        raise ValueError(f"block_diagonal: size={size} must be at least 1")
    plain = len(m) - extended
    result = np.zeros_like(m)
    if extended:
        result[:] = m
        result[:plain, :plain] = _mean_part(m)
    for start in range(0, plain, size):
        block = slice(start, min(start + size, plain))
        result[block, block] = m[block, block]
    return result


def low_rank(m: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A factor and a diagonal, with the diagonal of m itself.

    m ~ factor factor^T + diag(diagonal)

    The factor is U_r sqrt(L_r), of the r largest eigenvalues. What it leaves of m is
    semi-definite, so that its diagonal is not negative and the sum has full rank
    wherever an input was active.

    Args:
      m: [n, n].
      rank: r; n at most counts.

    Returns:
      (factor [n, min(r, n)], diagonal [n]), float32.

    Raises:
      ValueError: `m` is not square, not symmetric or not finite, or `rank` is
        negative.
    """
    from scipy.linalg import eigh

    m = _symmetric(m, "low_rank").astype(np.float64)
    if rank < 0:
        raise ValueError(f"low_rank: rank={rank} must not be negative")
    n, rank = len(m), min(rank, len(m))
    factor = np.zeros((n, rank), np.float32)
    if rank:
        values, vectors = eigh(m, subset_by_index=(n - rank, n - 1))
        factor[:] = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1]
    # Of the factor as it is stored, so that its rounding is made up for.
    rest = np.diagonal(m) - np.sum(factor.astype(np.float64) ** 2, axis=1)
    return factor, np.maximum(rest, 0).astype(np.float32)


def with_noise(
    m: np.ndarray, scale: float, seed: int, *, extended: bool = True
) -> np.ndarray:
    """A Gram with Gaussian noise on its entries, semi-definite again.

    E is symmetric, its entries on and above the diagonal independent with standard
    deviation scale * mean(diag(G)). G + E is no Gram, as it has negative eigenvalues;
    the nearest semi-definite matrix in Frobenius norm is taken, which touches nothing
    but the noisy matrix and so uncovers nothing that the noise hides. Of an extended
    Gram the covariance G - s s^T / c is what is brought back, so that the whole is
    semi-definite and its last row stays.

    **This is no differential privacy.** The input of a layer is not bounded, hence
    neither is what one example can add to a Gram, and `scale` follows the data; the
    means in the last row and the count get no noise at all. It blurs, and lets one
    measure what blur costs.

    Args:
      m: [n, n].
      scale: standard deviation by the mean of the plain part's diagonal; 0 for none.
      seed: of the noise.
      extended: whether the last row and column are those of the constant.

    Returns:
      [n, n] float32, semi-definite to rounding.

    Raises:
      ValueError: `m` is not square, not symmetric or not finite, or `scale` is
        negative or not finite.
    """
    result = _symmetric(m, "with_noise").astype(np.float64)
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"with_noise: scale={scale} must be a number from 0 on")
    plain = len(result) - extended
    if not plain:
        return result.astype(np.float32)
    gram = result[:plain, :plain]
    generator = np.random.Generator(np.random.PCG64(seed))
    deviation = scale * np.trace(gram) / plain
    upper = np.triu(generator.normal(0.0, deviation, gram.shape))
    centre = _mean_part(result) if extended else np.zeros_like(gram)
    noisy = gram + upper + np.triu(upper, 1).T - centre
    values, vectors = np.linalg.eigh((noisy + noisy.T) / 2)
    kept = vectors * np.sqrt(np.maximum(values, 0))
    result[:plain, :plain] = kept @ kept.T + centre
    return result.astype(np.float32)


def _mean_part(m: np.ndarray) -> np.ndarray:
    """The part of an extended Gram that its means make: s s^T / c, 0 without tokens."""
    row, corner = m[-1, :-1], m[-1, -1]
    return np.outer(row, row / corner) if corner > 0 else np.zeros_like(m[:-1, :-1])


def _symmetric(m: np.ndarray, what: str) -> np.ndarray:
    """The matrix, or an error."""
    m = np.asarray(m)
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise ValueError(f"{what}: a Gram is [n, n]; this has shape {m.shape}")
    if not np.isfinite(m).all():
        raise ValueError(f"{what}: the Gram is not finite; collect it again")
    if m.size and np.abs(m - m.T).max() > _ASYMMETRY * np.abs(m).max():
        raise ValueError(
            f"{what}: the matrix is not symmetric; a Gram is X^T X of some inputs"
        )
    return m
