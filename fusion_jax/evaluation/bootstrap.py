"""Uncertainty of a score by drawing items again."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fusion_jax.evaluation.metrics import METRICS
from fusion_jax.evaluation.scoring import Scores


class Difference(NamedTuple):
    """Score of a minus score of b, on the same drawn items.

    Attributes:
      mean: the difference on the split as it is.
      low: lower end of the 95 % interval.
      high: upper end of it.
      standard_error: standard deviation over the draws.
    """

    mean: float
    low: float
    high: float
    standard_error: float


def resample(scores: Scores, n: int = 1000, seed: int = 0) -> np.ndarray:
    """The mean of the metrics on `n` draws of the items with replacement.

    The draws depend on the seed and the number of items alone: two models scored on
    one split are drawn in pairs.

    Returns:
      [n] float64.

    Reference: Efron, 1979, Bootstrap methods: another look at the jackknife.
    """
    items = len(scores.stats[0])
    # One table of all statistics: one product gives the sums of every draw.
    table = np.concatenate(scores.stats, axis=1)
    drawn = np.concatenate(
        [weights @ table for weights in _draws(items, n, seed)], axis=0
    )
    ends = np.cumsum([stats.shape[1] for stats in scores.stats])[:-1]
    return np.mean(
        [
            METRICS[name].value(sums)
            for name, sums in zip(scores.values, np.split(drawn, ends, 1), strict=True)
        ],
        axis=0,
    )


def interval(scores: Scores, n: int = 1000, seed: int = 0) -> tuple[float, float]:
    """(low, high) of the score: the 2.5 and 97.5 % points of `resample`."""
    low, high = np.quantile(resample(scores, n, seed), [0.025, 0.975])
    return float(low), float(high)


def standard_error(scores: Scores, n: int = 1000, seed: int = 0) -> float:
    """Standard deviation of the score over the draws of `resample`."""
    return float(np.std(resample(scores, n, seed), ddof=1))


def paired_difference(
    scores_a: Scores, scores_b: Scores, n: int = 1000, seed: int = 0
) -> Difference:
    """How much better a is than b, with the uncertainty of the difference.

    Raises:
      ValueError: the two were not scored on the same items by the same metrics.
    """
    _check_same(scores_a, scores_b)
    drawn = resample(scores_a, n, seed) - resample(scores_b, n, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(
        scores_a.mean - scores_b.mean,
        float(low),
        float(high),
        float(np.std(drawn, ddof=1)),
    )


def _check_same(scores_a: Scores, scores_b: Scores) -> None:
    metrics = [list(s.values) for s in (scores_a, scores_b)]
    items = [len(s.stats[0]) for s in (scores_a, scores_b)]
    if metrics[0] != metrics[1] or items[0] != items[1]:
        raise ValueError(
            f"scores of {items[0]} items by {metrics[0]} and of {items[1]} items by "
            f"{metrics[1]} cannot be paired; score both on one split by one list"
        )


def _draws(items: int, n: int, seed: int, chunk: int = 64) -> Iterator[np.ndarray]:
    """How often each item is drawn, [chunk, items] float64 at a time."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        drawn = generator.integers(items, size=(size, items))
        codes = drawn + items * np.arange(size)[:, None]
        counts = np.bincount(codes.ravel(), minlength=size * items)
        yield counts.reshape(size, items).astype(np.float64)
