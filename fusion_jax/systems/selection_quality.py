"""How good each order of sources was, held against measured transfer.

Beside every order stand its controls: chance, orders that do not look at the target
(a source's own score; its mean score on the other targets, which nobody knows before),
the confidence of the source's model, and the overlap of vocabularies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.systems.selection_measures import Measured
from fusion_jax.transfer.quality import (
    Pruned,
    ndcg,
    pruning_curve,
    random_ranks,
    regret,
    spearman,
    without_loss,
)
from fusion_jax.transfer.ranking import learned_distances, ranks

FRACTIONS = tuple(round(0.05 * step, 2) for step in range(1, 21))
SURVIVAL = 0.95
"""Share of targets whose best source has to be kept for a loss to count as none."""

DRAWS = 200

RANDOM, LEARNED = "random", "learned"
CONTROLS = ("own_score", "mean_elsewhere", "confidence")
"""Orders that need trained sources: by a source's own score, by its mean score on the
other targets, by its model's confidence on the target."""


def judge_orders(
    measured: Measured,
    scores: np.ndarray,
    confidence: np.ndarray,
    reference: str,
) -> dict[str, dict[str, Any]]:
    """The record of every order, by name.

    Args:
      measured: distances of the tasks.
      scores: [N, N] of every source's model on every target, and on its own diagonal.
      confidence: [N, N], mean largest probability.
      reference: the measure that the others' differences are taken from.
    """
    names = measured.names
    orders = dict(measured.ranked)
    tables = {name: measured.distances[name] for name in measured.asked}
    # Pairs without a target have to be more than what is learned of them.
    if (len(names) - 1) * (len(names) - 2) > len(tables):
        orders[LEARNED] = ranks(learned_distances(tables, scores, names), names)
    for name, table in _controls(scores, confidence).items():
        orders[name] = ranks(table, names)
    held = spearman(orders[reference], scores)
    found = {
        name: order_record(ranked, scores, names, held)
        for name, ranked in orders.items()
    }
    draws = [
        order_record(r, scores, names, held) for r in random_ranks(len(names), DRAWS)
    ]
    found[RANDOM] = _mean_record(draws)
    return found


def order_record(
    ranked: np.ndarray, scores: np.ndarray, names: Sequence[str], held: np.ndarray
) -> dict[str, Any]:
    """What one order was worth.

    Args:
      ranked: [N, N] of `ranking.ranks`.
      scores: [N, N].
      names: of the tasks.
      held: Spearman of the reference, [N].

    Returns:
      'spearman' {mean, sd, min, targets {name: value or None}}, 'against_reference'
      {mean, se}, 'regret' {1, 3}, 'ndcg', 'first' (mean score of the first source),
      'pruning' (a list of `Pruned` as dicts), 'without_loss' (the entry of the smallest
      fraction that keeps the best source of 95 % of targets, or None).
    """
    found = spearman(ranked, scores)
    known = found[np.isfinite(found)]
    paired = (found - held)[np.isfinite(found) & np.isfinite(held)]
    curve = pruning_curve(ranked, scores, FRACTIONS)
    smallest = without_loss(curve, SURVIVAL)
    first = [scores[list(ranked[:, t]).index(1), t] for t in range(len(names))]
    return {
        "spearman": {
            "mean": _number(np.mean(known)) if len(known) else None,
            "sd": _number(np.std(known, ddof=1)) if len(known) > 1 else None,
            "min": _number(np.min(known)) if len(known) else None,
            "targets": dict(zip(names, map(_number, found), strict=True)),
        },
        "against_reference": {
            "mean": _number(np.mean(paired)) if len(paired) else None,
            "se": _number(np.std(paired, ddof=1) / np.sqrt(len(paired)))
            if len(paired) > 1
            else None,
        },
        "regret": {str(k): _number(np.mean(regret(ranked, scores, k))) for k in (1, 3)},
        "ndcg": _number(_mean(ndcg(ranked, scores))),
        "first": _number(np.mean(first)),
        "pruning": [point._asdict() for point in curve],
        "without_loss": smallest._asdict() if smallest else None,
    }


def _controls(scores: np.ndarray, confidence: np.ndarray) -> dict[str, np.ndarray]:
    """Distances of the controls, [N, N]."""
    count = len(scores)
    own = np.repeat(-np.diag(scores)[:, None], count, axis=1)
    elsewhere = np.empty((count, count))
    for s in range(count):
        for t in range(count):
            others = [u for u in range(count) if u not in (s, t)]
            elsewhere[s, t] = -np.mean(scores[s, others])
    return {
        "own_score": own,
        "mean_elsewhere": elsewhere,
        "confidence": -confidence,
    }


def _mean_record(draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of an order by chance: every number the mean over draws."""

    def mean(*path: str) -> float | None:
        values: list[Any] = list(draws)
        for key in path:
            values = [value[key] for value in values]
        known = [value for value in values if value is not None]
        return _number(np.mean(known)) if known else None

    curve = [
        Pruned(
            **{field: float(np.mean([p[field] for p in points])) for field in points[0]}
        )
        for points in zip(*(draw["pruning"] for draw in draws), strict=True)
    ]
    smallest = without_loss(curve, SURVIVAL)
    return {
        "spearman": {
            **{key: mean("spearman", key) for key in ("mean", "sd", "min")},
            "targets": {
                name: mean("spearman", "targets", name)
                for name in draws[0]["spearman"]["targets"]
            },
        },
        "against_reference": {"mean": mean("against_reference", "mean"), "se": None},
        "regret": {k: mean("regret", k) for k in ("1", "3")},
        "ndcg": mean("ndcg"),
        "first": mean("first"),
        "pruning": [point._asdict() for point in curve],
        "without_loss": smallest._asdict() if smallest else None,
    }


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.mean(known)) if len(known) else float("nan")


def _number(value: Any) -> float | None:
    """A JSON number; None for NaN, which JSON has not."""
    return float(value) if np.isfinite(value) else None
