"""The sections of the report of one run."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fusion_jax.reports import course, domains, elements, rounds
from fusion_jax.reports.elements import Cell, Row
from fusion_jax.reports.methods import (
    NOT_ONE_MODEL,
    coefficients_of,
    describe,
    experts_of,
    interval_of,
    main_method,
    reference_method,
    reported_split,
    score_of,
)
from fusion_jax.reports.summary import headline
from fusion_jax.reports.tables import (
    ABSENT,
    difference,
    interval,
    number,
    ordered_methods,
)

Results = Mapping[str, Any]
History = Mapping[str, Any]


def header(results: Results) -> str:
    """The answer, and what was run."""
    metrics = results.get("metric") or ()
    names = metrics.split(" + ") if isinstance(metrics, str) else list(metrics)
    facts = [f"target {results['target']}"]
    if names:
        mean = "mean of " if len(names) > 1 else ""
        facts.append(f"score: {mean}{' and '.join(names)}")
    facts.append(f"seed {results.get('seed', 0)}")
    # The pretrained model may be a point; it is no expert.
    experts = results.get("experts") or experts_of(results)
    if experts:
        facts.append(f"{len(experts)} experts")
    if results.get("candidates") is not None:
        facts.append(f"{results['candidates']} candidates evaluated")
    total = sum(s for s in (results.get("seconds") or {}).values() if s is not None)
    if total:
        facts.append(elements.duration(total))
    label = describe(main_method(results)).label
    return (
        f'<p class="eyebrow">{escape(" · ".join([label, *facts]))}</p>\n'
        f"<h1>{escape(headline(results))}</h1>\n"
        f'<p class="lead">{escape(standing(results))}</p>'
    )


def standing(results: Results) -> str:
    """How the method stands among the single models of the run, in a sentence."""
    own, split = main_method(results), reported_split(results)
    score = score_of(results, own, split)
    others = {
        name: found
        for name in results.get("methods", {})
        if name not in (own, *NOT_ONE_MODEL)
        and (found := score_of(results, name, split)) is not None
    }
    if score is None or not others:
        return ""
    above = sum(round(score, 3) > round(other, 3) for other in others.values())
    best = max(others, key=lambda name: others[name])
    return (
        f"It is above {above} of the {len(others)} other ways to get one model; the "
        f"best of those is {describe(best).label}, {others[best]:.3f}."
    )


def methods(results: Results, level: int = 2) -> str:
    """Methods by dev and test with intervals, numbers and drawing in one table."""
    split, own = reported_split(results), main_method(results)
    held = reference_method(results)
    reference = score_of(results, held, split)
    names = ordered_methods(results)
    known = [score_of(results, name, split) for name in names]
    bounds = [interval_of(results, name) for name in names]
    values = [x for x in known if x is not None]
    values += [x for pair in bounds if pair is not None for x in pair]
    if not values:
        return ""
    ends = (min(values), max(values))
    rows = []
    for name, score, pair in zip(names, known, bounds, strict=True):
        shown, what = describe(name)
        rows.append(
            Row(
                f"{escape(shown)}<small>{escape(what)}</small>",
                [
                    elements.score_cell(score_of(results, name, "dev")),
                    elements.score_cell(score_of(results, name, "test")),
                    Cell(interval(pair)) if pair else elements.absent("no interval"),
                    elements.interval_drawing(score, pair, ends, reference),
                    elements.gain_cell(difference(score, reference)),
                ],
                "own" if name == own else "",
            )
        )
    scale = f"{split}, {number(ends[0])} to {number(ends[1])}"
    label = describe(held).label
    columns = ["method", "dev", "test", "95 % interval", scale, f"vs {label}"]
    return elements.section(
        "Methods",
        elements.table(columns, rows),
        note="Scores are in [0, 1], higher is better. Intervals are 95 % bootstrap "
        f"over test items; the dashed line is the {label}. {ABSENT} means not run. "
        "Everything was chosen on dev.",
        level=level,
    )


def sources(results: Results, level: int = 2) -> str:
    """What each expert contributed, beside its own scores."""
    groups, scores = coefficients_of(results), results.get("experts") or {}
    names = list(dict.fromkeys([*experts_of(results), *scores]))
    if not names:
        return ""
    without = results.get("dev_without") or {}
    weights = [w for row in groups.values() for w in row.values() if w is not None]
    ends = (min(weights, default=0.0), max(weights, default=0.0))
    mean = {
        name: float(np.mean([row[name] for row in groups.values()]))
        for name in experts_of(results)
    }
    names.sort(key=lambda name: -mean.get(name, -math.inf))
    rows = []
    for name in names:
        cells = []
        for row in groups.values():
            weight = row.get(name)
            cells.append(
                Cell(number(weight))
                if weight is not None
                else elements.absent("not interpolated")
            )
            if len(groups) == 1:
                cells.append(elements.bar_drawing(weight, ends))
        cells += [
            elements.score_cell((scores.get(name) or {}).get(split))
            for split in ("dev", "test")
        ]
        if without:
            cells.append(elements.score_cell(without.get(name)))
        rows.append(Row(escape(name), cells))
    shown = [
        c
        for g in groups
        for c in ((escape(g) or "weight", "") if len(groups) == 1 else (escape(g),))
    ]
    return elements.section(
        "What each source contributed",
        elements.table(
            ["expert", *shown, "dev", "test", *(["dev without it"] if without else [])],
            rows,
        ),
        note="Weights of the chosen interpolation, and how good each expert is alone"
        + (", and the interpolation without it." if without else "."),
        level=level,
    )


def cost(results: Results) -> str:
    """Seconds of every stage."""
    seconds = {n: s for n, s in (results.get("seconds") or {}).items()}
    known = {n: s for n, s in seconds.items() if s is not None}
    if not known:
        return ""
    total = sum(known.values())
    ends = (0.0, max(known.values()))
    rows = [
        Row(
            escape(name.replace("_", " ")),
            [
                Cell(elements.duration(s)) if s is not None else elements.absent(),
                Cell(f"{100 * s / max(total, 1e-9):.0f} %")
                if s is not None
                else elements.absent(),
                elements.bar_drawing(s, ends),
            ],
        )
        for name, s in seconds.items()
    ]
    foot = [Row("all", [Cell(elements.duration(total)), Cell("100 %"), Cell("")])]
    return elements.section(
        "Time by stage", elements.table(["stage", "time", "share", ""], rows, foot=foot)
    )


def details(results: Results) -> str:
    """Configuration and versions, folded."""
    return elements.section(
        "How it was run",
        elements.settings("Configuration", results.get("config") or {})
        + elements.settings("Versions", results.get("versions") or {}),
    )


def sections(results: Results, history: History) -> Sequence[str]:
    """All sections in reading order."""
    return (
        methods(results),
        *rounds.sections(results),
        domains.unseen(results),
        sources(results),
        domains.choices(results),
        course.search(results, history),
        course.plane(results, history),
        cost(results),
        details(results),
    )
