"""What a rank is worth in score, by a study of other tasks.

From texts alone it cannot be known. A finished run of `task_selection` over all pairs
says what ranks were worth there, as the line that its pairs follow.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.systems.selection_defaults import FUSION, SYSTEM
from fusion_jax.transfer.ranking import fused_ranks


class Line(NamedTuple):
    """Gain over the mean source of a target by rank, from a study.

    gain = intercept + slope p, p = (rank - 1/2) / sources

    Attributes:
      intercept: of the least squares line.
      slope: of it; below zero where nearer sources are better.
      spread: standard deviation of a pair's gain about the line.
      pairs: that it was fitted on.
      metric: of the scores.
      order: by which the study's sources were ranked.
    """

    intercept: float
    slope: float
    spread: float
    pairs: int
    metric: str
    order: str

    def at(self, rank: int, count: int) -> float:
        """The expected gain of a rank among so many sources."""
        return self.intercept + self.slope * (rank - 0.5) / count


def study_line(
    workdir: str | os.PathLike[str], order: str, measures: Sequence[str] = ()
) -> Line:
    """What ranks were worth in a finished study.

    Args:
      workdir: of a run of task selection over all pairs.
      order: a measure, or 'fusion', that it has.
      measures: that the fusion is of, whatever the study's own was of; empty = that.

    Raises:
      ValueError: it is no such run, or it has not this order or a measure of the
        fusion; it says what it has.
    """
    file = Path(workdir) / "results.json"
    if not file.is_file():
        raise ValueError(
            f"study: there is no {file}; name the workdir of a finished run of "
            "fusion-jax task-selection"
        )
    results = json.loads(file.read_text())
    if results.get("system") != SYSTEM or not results.get("measures"):
        raise ValueError(
            f"study: {file} is no task selection over all pairs (pairs='all')"
        )
    pairs = results["pairs"]
    if order == FUSION and measures:
        pairs = _fused(pairs, results, measures, file)
    known = list(pairs[0]["ranks"])
    if order not in known:
        raise ValueError(
            f"study: {file} has no order '{order}'; it has {', '.join(known)}"
        )
    by_target: dict[str, list[Mapping[str, Any]]] = {}
    for pair in pairs:
        by_target.setdefault(pair["target"], []).append(pair)
    places, gains = [], []
    for found in by_target.values():
        mean = np.mean([pair["zero_shot"] for pair in found])
        places += [(pair["ranks"][order] - 0.5) / len(found) for pair in found]
        gains += [pair["zero_shot"] - mean for pair in found]
    slope, intercept = np.polyfit(places, gains, 1)
    rest = np.array(gains) - intercept - slope * np.array(places)
    return Line(
        float(intercept),
        float(slope),
        float(np.std(rest, ddof=2)),
        len(gains),
        results["metric"],
        order,
    )


def _fused(
    pairs: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    measures: Sequence[str],
    file: Path,
) -> list[dict[str, Any]]:
    """Pairs with the ranks of a fusion of some of the study's measures."""
    known = results["distances"]
    lost = [name for name in measures if name not in known]
    if lost:
        raise ValueError(
            f"study: {file} has no {', '.join(lost)} for a fusion of "
            f"{', '.join(measures)}; it has {', '.join(known)}"
        )
    names = results["names"]
    ranked = fused_ranks({name: np.array(known[name]) for name in measures}, names)
    place = {name: number for number, name in enumerate(names)}

    def rank(pair: Mapping[str, Any]) -> int:
        return int(ranked[place[pair["source"]], place[pair["target"]]])

    return [{**p, "ranks": {**p["ranks"], FUSION: rank(p)}} for p in pairs]
