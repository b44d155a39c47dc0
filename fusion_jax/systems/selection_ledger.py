"""What a choice of sources costs and saves, in measured seconds, by two accounts.

A source's model serves all targets where it is used as it is (zero-shot). So pruning
saves a training there only if no target keeps the source, and a pass over test rows
for every pair that is dropped: the account 'per_source'. Where every pair is tuned by
itself (a model a pair, few-shot), each dropped pair saves its own training: 'per_pair'.
There the seconds of a pair are those of its source's training, or, with few-shot
tuning, what tuning the kept pairs took on average; the account says which.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.systems.selection_measures import Measured, measuring_seconds
from fusion_jax.systems.zero_shot import Row
from fusion_jax.transfer.ranking import kept

ACCOUNTS = ("per_source", "per_pair")


def account(
    chosen: np.ndarray,
    measuring: float,
    training: np.ndarray,
    scoring: np.ndarray,
    pair_seconds: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Seconds with and without the choice, by both accounts.

    per source: M + sum_s [any_t k_st] train_s + sum_st k_st score_st
    per pair:   M + sum_st k_st (pair_st + score_st)

    Args:
      chosen: k [N, N] bool, False on the diagonal.
      measuring: M.
      training: [N] of each source.
      scoring: [N, N] of each pass over a target's test rows.
      pair_seconds: [N, N] of tuning a pair by itself.

    Returns:
      account -> 'all' (every pair, nothing measured), 'kept', 'saved' = 1 - kept / all.
    """
    off = ~np.eye(len(chosen), dtype=bool)
    every = {
        "per_source": training.sum() + scoring[off].sum(),
        "per_pair": (pair_seconds + scoring)[off].sum(),
    }
    left = {
        "per_source": measuring
        + training[chosen.any(axis=1)].sum()
        + scoring[chosen].sum(),
        "per_pair": measuring + (pair_seconds + scoring)[chosen].sum(),
    }
    return {
        name: {
            "all": float(every[name]),
            "kept": float(left[name]),
            "saved": float(1 - left[name] / every[name]),
        }
        for name in ACCOUNTS
    }


def ledger(
    measured: Measured,
    rows: Mapping[str, Row],
    judged: Mapping[str, Mapping[str, Any]] | None,
    order: str,
    keep: float,
    few_seconds: float | None,
    clock: str,
) -> dict[str, Any]:
    """The ledger of a run.

    Args:
      measured: with its seconds.
      rows: of the sources that were trained.
      judged: orders by `judge_orders`; None where not all pairs were tried.
      order: by which pairs are kept.
      keep: fraction that is kept.
      few_seconds: mean seconds of tuning a pair by few rows; None without that.
      clock: whose seconds, of `clocks.CLOCKS`.
    """
    names = measured.names

    def of_source(name: str) -> float | None:
        return rows[name]["train_seconds"][clock] if name in rows else None

    def of_cell(source: str, target: str) -> float | None:
        cells = rows[source]["targets"] if source in rows else {}
        return cells[target]["seconds"][clock] if target in cells else None

    training = _filled([of_source(name) for name in names])
    scoring = _filled([[of_cell(s, t) for t in names] for s in names])
    of_pair = np.repeat(training[:, None], len(names), axis=1)
    if few_seconds is not None:
        of_pair = np.full(of_pair.shape, few_seconds)

    def of(name: str, fraction: float) -> dict[str, dict[str, float]]:
        measures = [name] if name in measured.distances else measured.asked
        chosen = kept(measured.ranked[name], fraction)
        measuring = measuring_seconds(measured, measures, clock)
        return account(chosen, measuring, training, scoring, of_pair)

    smallest = {
        name: record["without_loss"]
        for name, record in (judged or {}).items()
        if name in measured.ranked
    }
    return {
        "clock": clock,
        "measuring": measured.seconds[clock],
        "training": dict(zip(names, map(of_source, names), strict=True)),
        "scoring": {s: sum(of_cell(s, t) or 0 for t in names) for s in rows},
        "estimated": [name for name in names if of_source(name) is None],
        "pair": "few-shot tuning" if few_seconds is not None else "source's training",
        "at_keep": of(order, keep),
        "at_no_loss": {
            name: {"keep": found["keep"], **of(name, found["keep"])} if found else None
            for name, found in smallest.items()
        },
        "curve": [
            {"keep": point["keep"], **of(order, point["keep"])}
            for point in (judged[order]["pruning"] if judged else ())
        ],
    }


def _filled(values: Sequence[Any]) -> np.ndarray:
    """Seconds with the mean of the known ones for those saved or not known."""
    found = np.array(values, float)
    known = found[np.isfinite(found)]
    return np.where(np.isfinite(found), found, known.mean() if len(known) else 0.0)
