"""How good an order of sources is, target by target, against what transfer gave.

Tables as in `ranking`: row s, column t. Everything is by target first; one pooled
correlation would mix how hard targets are with how good sources are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.transfer.ranking import kept


def spearman(ranked: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Rank correlation of closeness with score, [N], one a target; NaN of a constant.

    Args:
      ranked: [N, N] of `ranking.ranks`, 1 = closest.
      scores: [N, N], larger is better.
    """
    from scipy.stats import rankdata

    def of(target: int) -> float:
        sources = _sources(ranked, target)
        pair = np.stack(
            [
                rankdata(-ranked[sources, target]),
                rankdata(scores[sources, target]),
            ]
        )
        if (np.ptp(pair, axis=1) == 0).any():
            return float("nan")
        return float(np.corrcoef(pair)[0, 1])

    return np.array([of(t) for t in range(len(ranked))])


def regret(ranked: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Regret@k = (best of all - best of the k first) / best of all, [N].

    Args:
      ranked: [N, N].
      scores: [N, N], positive.
      k: sources that would be tried.
    """
    found = np.empty(len(ranked))
    for t in range(len(ranked)):
        sources = _sources(ranked, t)
        best = scores[sources, t].max()
        tried = [s for s in sources if ranked[s, t] <= k]
        found[t] = (best - scores[tried, t].max()) / best
    return found


def ndcg(ranked: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """DCG of the order over DCG of the best one, [N]; NaN where all scores are equal.

    sum_r g_r / log2(1 + r) with g = score - the target's least score: with raw
    accuracies as gains any order looks near 1.
    """
    found = np.empty(len(ranked))
    for t in range(len(ranked)):
        sources = _sources(ranked, t)
        gains = scores[sources, t] - scores[sources, t].min()
        places = 1 / np.log2(1 + np.arange(1, len(sources) + 1))
        by_rank = gains[np.argsort(ranked[sources, t])]
        ideal = np.sum(np.sort(gains)[::-1] * places)
        found[t] = np.sum(by_rank * places) / ideal if ideal > 0 else np.nan
    return found


class Pruned(NamedTuple):
    """What keeping a fraction of the sources costs and saves.

    Attributes:
      keep: the fraction.
      survival: share of targets whose best source is kept.
      regret: mean over targets of (best of all - best kept) / best of all.
      pairs: share of all ordered pairs that are kept.
      sources: share of sources that are kept for one target or more: where one model a
        source serves all targets, only what nobody keeps saves a training.
    """

    keep: float
    survival: float
    regret: float
    pairs: float
    sources: float


def pruning_curve(
    ranked: np.ndarray, scores: np.ndarray, fractions: Sequence[float]
) -> list[Pruned]:
    """What each fraction costs and saves.

    Args:
      ranked: [N, N].
      scores: [N, N], positive.
      fractions: in (0, 1].
    """
    count, curve = len(ranked), []
    for fraction in fractions:
        chosen = kept(ranked, fraction)
        lost, survived = [], []
        for t in range(count):
            sources = _sources(ranked, t)
            best = scores[sources, t].max()
            left = scores[chosen[:, t], t].max()
            lost.append((best - left) / best)
            survived.append(left == best)
        curve.append(
            Pruned(
                float(fraction),
                float(np.mean(survived)),
                float(np.mean(lost)),
                float(chosen.sum() / (count * (count - 1))),
                float(np.mean(chosen.any(axis=1))),
            )
        )
    return curve


def without_loss(curve: Sequence[Pruned], survival: float = 0.95) -> Pruned | None:
    """The smallest fraction that keeps the best source of so many targets, or None.

    From it on every larger fraction must do so, too.
    """
    found = None
    for point in sorted(curve, key=lambda point: -point.keep):
        if point.survival < survival:
            break
        found = point
    return found


def random_ranks(count: int, draws: int, seed: int = 0) -> list[np.ndarray]:
    """Orders by chance, the first control: [N, N] as of `ranking.ranks`, many draws."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        table = np.zeros((count, count), np.int64)
        for t in range(count):
            sources = [s for s in range(count) if s != t]
            table[random.permutation(sources), t] = np.arange(1, count)
        found.append(table)
    return found


def _sources(ranked: np.ndarray, target: int) -> list[int]:
    return [s for s in range(len(ranked)) if s != target]
