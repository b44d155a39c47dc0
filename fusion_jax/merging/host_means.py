"""Means on the host, in float64, of arrays that are read one at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any
"""What numpy can read: its arrays, those of jax, memory mapped files."""

_PART = 2**20  # elements that are averaged at a time

Readable = Array | Callable[[], Array]
"""An array, or a function that reads it when it is asked for."""


def read(item: Readable) -> np.ndarray:
    """The array, read now."""
    return np.asarray(item() if callable(item) else item)


def shares(coefficients: Sequence[float] | Array, count: int) -> np.ndarray:
    """Coefficients over their sum, [K] float64.

    Raises:
      ValueError: not K of them, a negative one, or a sum that is 0 or not finite.
    """
    row = np.asarray(coefficients, np.float64)
    if row.shape != (count,):
        raise ValueError(f"coefficients of shape {row.shape} for {count} experts")
    total = row.sum()
    if not ((row >= 0).all() and total > 0 and np.isfinite(total)):
        raise ValueError(
            f"coefficients {row.tolist()}: they must be finite, none negative and not "
            "all 0"
        )
    return row / total


def weighted_mean(items: Sequence[Readable], weights: np.ndarray) -> np.ndarray:
    """sum_k w_k x_k in float64, w of sum 1; exact where the x that count are equal.

    Raises:
      ValueError: shapes that differ.
    """
    # From the heaviest: equal items leave nothing to round.
    first = int(np.argmax(weights))
    anchor = read(items[first]).astype(np.float64)
    mean = anchor.copy()
    for k, weight in enumerate(weights):
        if k == first or weight == 0:
            continue
        item = read(items[k])
        if item.shape != anchor.shape:
            raise ValueError(
                f"expert {k} has shape {item.shape}, expert {first} {anchor.shape}"
            )
        mean += weight * (item.astype(np.float64) - anchor)
    return mean


def rounded_mean(arrays: Sequence[Array], weights: np.ndarray) -> np.ndarray:
    """`weighted_mean` in the dtype of the first array, a part of it at a time.

    For embeddings, which in float64 would be the largest thing in memory.
    """
    views = [np.asarray(x) for x in arrays]
    out = np.empty(views[0].shape, views[0].dtype)
    if out.ndim == 0 or any(view.shape != out.shape for view in views):
        return weighted_mean(views, weights).astype(out.dtype)
    step = max(1, _PART * len(out) // max(out.size, 1))
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        out[rows] = weighted_mean([view[rows] for view in views], weights)
    return out
