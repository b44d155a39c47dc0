"""results.json of a task selection."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_jax.systems.experts import DIRECT
from fusion_jax.systems.few_shot_pairs import Cells
from fusion_jax.systems.outcome import SCHEMA_VERSION, versions
from fusion_jax.systems.selection_defaults import SYSTEM, order_of
from fusion_jax.systems.selection_measures import Measured
from fusion_jax.systems.selection_quality import CONTROLS, LEARNED, RANDOM
from fusion_jax.systems.selection_setting import Setting
from fusion_jax.systems.zero_shot import Row


def table_of(rows: Mapping[str, Row], names: tuple[str, ...], field: str) -> np.ndarray:
    """A field of the cells as [N, N]; NaN for pairs that were not tried."""
    found = np.full((len(names), len(names)), np.nan)
    for s, source in enumerate(names):
        cells = rows[source]["targets"] if source in rows else {}
        for t, target in enumerate(names):
            if target in cells:
                found[s, t] = cells[target][field]
    return found


def selection_results(
    setting: Setting,
    measured: Measured,
    chosen: np.ndarray,
    rows: Mapping[str, Row],
    few: Mapping[str, Cells] | None,
    judged: Mapping[str, Mapping[str, Any]] | None,
    ledger: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The record of a run; what was not run is null.

    Args:
      setting: tasks and options.
      measured: distances and ranks.
      chosen: [N, N] bool, kept pairs.
      rows: of the sources that were trained.
      few: of `few_shot_pairs.few_shot`, or None.
      judged: of `selection_quality.judge_orders`, or None.
      ledger: of `selection_ledger.ledger`.
      seconds: of each stage of this run.
    """
    config, names = setting.config, measured.names
    problems = setting.problems
    return {
        "schema_version": SCHEMA_VERSION,
        "system": SYSTEM,
        "target": "all",
        "metric": " + ".join(next(iter(problems.values())).metrics),
        "seed": config.seed,
        "methods": _methods(measured, judged),
        "order": order_of(config),
        "keep": config.keep,
        "tasks": {
            name: {
                "rows": {split: len(x) for split, x in problems[name].encoded.items()},
                "dropped_shared_texts": setting.read.shared[name],
                "own_score": _own(rows, name),
            }
            for name in names
        },
        "left_out": {**setting.read.left_out, **measured.left_out},
        "budget": measured.budget,
        "texts": measured.texts,
        "pairs": _pairs(measured, chosen, rows, few),
        "measures": judged,
        "few_shot_direct": None
        if few is None
        else {t: cell["score"] for t, cell in few[DIRECT].items()},
        "distances": {
            name: table.tolist() for name, table in measured.distances.items()
        },
        "names": list(names),
        "ledger": ledger,
        "coefficients": None,
        "experts": None,
        "candidates": None,
        "seconds": dict(seconds),
        "versions": versions(),
        "config": json.loads(config.to_json()),
    }


def _methods(
    measured: Measured, judged: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Any]:
    """The mean score of each order's first sources; null of an order not judged."""
    names = dict.fromkeys([*measured.ranked, LEARNED, *CONTROLS, RANDOM])
    found = judged or {}
    return {
        name: {
            "dev": None,
            "test": found[name]["first"] if name in found else None,
            "test_interval": None,
        }
        for name in names
    }


def _own(rows: Mapping[str, Row], name: str) -> float | None:
    return rows[name]["targets"][name]["score"] if name in rows else None


def _pairs(
    measured: Measured,
    chosen: np.ndarray,
    rows: Mapping[str, Row],
    few: Mapping[str, Cells] | None,
) -> list[dict[str, Any]]:
    """One entry an ordered pair: ranks, whether it was kept, and what it gave."""
    pairs = []
    for s, source in enumerate(measured.names):
        cells = rows[source]["targets"] if source in rows else {}
        for t, target in enumerate(measured.names):
            if s == t:
                continue
            cell = cells.get(target)
            tuned = ((few or {}).get(source) or {}).get(target)
            pairs.append(
                {
                    "source": source,
                    "target": target,
                    "kept": bool(chosen[s, t]),
                    "ranks": {n: int(r[s, t]) for n, r in measured.ranked.items()},
                    "zero_shot": cell["score"] if cell else None,
                    "values": cell["values"] if cell else None,
                    "few_shot": tuned["score"] if tuned else None,
                }
            )
    return pairs
