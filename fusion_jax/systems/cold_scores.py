"""Scores of a base over groups of tasks, and how far it is above the plain one."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fusion_jax.systems.cold_evaluation import Record

Records = Mapping[str, Record]
Evaluations = Mapping[str, Records]
"""Way to evaluate -> task -> record."""

# Fewer tasks than this say nothing by drawing them anew.
_LEAST_TASKS = 5


def group_entry(
    records: Records, base: Records | None, tiny: Collection[str]
) -> dict[str, Any] | None:
    """What a base does for a group of tasks.

    Args:
      records: task -> record.
      base: the plain base's records of the same tasks; None for the base itself.
      tiny: tasks that are left out of the second average.

    Returns:
      'score' (mean over tasks of the test score) with 'interval' (over test items) and
      'median', 'without_tiny' ('score', 'interval', 'tasks'), 'tasks' {task: score},
      'gain' over the base (see `gain_entry`); None without tasks.
    """
    if not records:
        return None
    large = {name: x for name, x in records.items() if name not in tiny}
    return {
        **mean_entry(records),
        "median": float(np.median([record["test"] for record in records.values()])),
        "without_tiny": {**mean_entry(large), "tasks": len(large)} if large else None,
        "tasks": {name: record["test"] for name, record in records.items()},
        "gain": None if base is None else gain_entry(records, base, tiny),
    }


def gain_entry(
    records: Records, base: Records, tiny: Collection[str]
) -> dict[str, Any]:
    """How far a base is above the plain one, on the same tasks and test items.

    Returns:
      'mean' with 'interval' (paired, over test items) and 'interval_tasks' (over draws
      of the tasks; None for less than five), 'median', 'without_tiny' (mean), 'better',
      'worse', 'equal' (tasks), 'worst' and 'best' ([task, gain]), 'tasks' {task: gain}.
    """
    gains = {name: records[name]["test"] - base[name]["test"] for name in records}
    values = np.array(list(gains.values()))
    drawn = np.mean([_draws(records[n]) - _draws(base[n]) for n in records], axis=0)
    large = [gain for name, gain in gains.items() if name not in tiny]
    low, high = min(gains, key=lambda n: gains[n]), max(gains, key=lambda n: gains[n])
    return {
        "mean": float(values.mean()),
        "interval": _ends(drawn),
        "interval_tasks": _over_tasks(values),
        "median": float(np.median(values)),
        "without_tiny": float(np.mean(large)) if large else None,
        "better": int(np.sum(values > 0)),
        "worse": int(np.sum(values < 0)),
        "equal": int(np.sum(values == 0)),
        "worst": [low, gains[low]],
        "best": [high, gains[high]],
        "tasks": gains,
    }


def mean_entry(records: Records) -> dict[str, Any]:
    """'score', the mean over tasks, and its 'interval' over draws of their items."""
    draws = np.mean([_draws(record) for record in records.values()], axis=0)
    return {
        "score": float(np.mean([record["test"] for record in records.values()])),
        "interval": _ends(draws),
    }


def _over_tasks(gains: np.ndarray, draws: int = 10_000) -> list[float] | None:
    if len(gains) < _LEAST_TASKS:
        return None
    generator = np.random.Generator(np.random.PCG64(0))
    drawn = generator.integers(len(gains), size=(draws, len(gains)))
    return _ends(gains[drawn].mean(axis=1))


def _draws(record: Record) -> np.ndarray:
    return np.asarray(record["draws"], np.float64)


def _ends(draws: np.ndarray) -> list[float]:
    return [float(x) for x in np.quantile(draws, [0.025, 0.975])]
