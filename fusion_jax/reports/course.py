"""The sections of a report on the search: its course, and the loss around it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_jax.reports import elements, plots
from fusion_jax.reports.methods import experts_of
from fusion_jax.reports.tables import number

Results = Mapping[str, Any]
History = Mapping[str, Any]

OBJECTIVES = {
    "loss": "dev loss",
    "calibrated_loss": "dev loss after calibration",
    "soft_f1": "1 \N{MINUS SIGN} soft F1 on dev",
    "metric": "\N{MINUS SIGN} score on dev",
    "auto": "\N{MINUS SIGN} soft F1 or score on dev",
    "metric_calibrated": "\N{MINUS SIGN} score on dev",
}


def search(results: Results, history: History) -> str:
    """Fitness by evaluation and the paths of the coefficients."""
    parts = []
    objective = ((results.get("config") or {}).get("search") or {}).get("objective")
    label = OBJECTIVES.get(str(objective), "fitness")
    evaluations = history.get("evaluations") or []
    finite = [
        (e["fitness"], n)
        for n, e in enumerate(evaluations, 1)
        if e["fitness"] is not None and math.isfinite(e["fitness"])
    ]
    if finite:
        best, place = min(finite)
        said = f"The best of {len(evaluations)} candidates is number {place}: "
        said += f"{number(best, 4)}."
        parts.append(
            elements.figure(
                plots.fitness(evaluations, label),
                f"Fitness by evaluation. {said}",
                f"Fitness of each candidate and the best so far. {said}",
            )
        )
    means, names = history.get("means") or [], experts_of(results)
    if len(means) > 1 and names:
        last = np.asarray(means[-1], float).reshape(-1, len(names)).mean(axis=0)
        pairs = zip(names, last, strict=True)
        ends = ", ".join(f"{name} {number(weight, 2)}" for name, weight in pairs)
        parts.append(
            elements.figure(
                plots.coefficient_paths(means, names),
                f"Coefficients of the distribution's mean over {len(means)} "
                f"generations, at the end: {ends}.",
                "The distribution's mean, generation by generation: one line an "
                "expert.",
            )
        )
    drawn = f'<div class="pair">{"".join(parts)}</div>' if parts else ""
    return elements.section("Search", drawn, note=_choice(results))


def plane(results: Results, history: History) -> str:
    """The loss over the plane through three experts."""
    data, names = history.get("plane"), experts_of(results)
    if not data:
        return ""
    corners = [x if isinstance(x, str) else names[x] for x in data["experts"]]
    values = [x for x in data["loss"] if x is not None and math.isfinite(x)]
    if not values:
        return ""
    named = ", ".join(corners[:-1]) + f" and {corners[-1]}"
    said = (
        f"Dev loss over the plane through {named}; the lowest on the grid is "
        f"{number(min(values))}."
    )
    return elements.section(
        "The loss between three experts",
        elements.figure(
            plots.plane(data, names),
            said,
            f"{said} Stronger colour is lower loss. The line is the walk of the "
            "distribution's mean, projected on the plane; the star is its end.",
            wide=True,
        ),
    )


def _choice(results: Results) -> str:
    """How the answer was chosen among the mean and its rivals."""
    answer = results.get("answer") or {}
    chosen = answer.get("chosen")
    if chosen is None:
        return ""
    if chosen == "mean":
        return (
            "The answer is the distribution's mean: no other candidate was better on "
            "dev by more than one standard error."
        )
    gain = (answer.get("advantage_over_mean") or {}).get(chosen) or {}
    return (
        f"The answer is {chosen}: on dev it is better than the distribution's mean by "
        f"{number(gain.get('difference'))}, more than one standard error "
        f"({number(gain.get('standard_error'))}). That is the rule and no proof: of "
        "candidates as good as the mean one in six passes it by chance."
    )
