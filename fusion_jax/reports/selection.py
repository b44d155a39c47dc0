"""The report of a task selection: one HTML page that loads nothing."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import atomic
from fusion_jax.reports import elements, selection_maps, selection_plots
from fusion_jax.reports.elements import Cell, Row
from fusion_jax.reports.selection_tables import (
    label,
    measures_table,
    ordered,
    pairs_line,
    saving_line,
)
from fusion_jax.reports.single import cost, details
from fusion_jax.reports.tables import number

Results = Mapping[str, Any]

_CURVES = 3  # orders that are drawn beside the one that chose and the controls


def write_selection(results: Results, path: str | os.PathLike[str]) -> Path:
    """Writes the page; what stood there before is untouched if it cannot be written."""
    target = Path(path)
    atomic.write_text(target, page(results))
    return target


def page(results: Results) -> str:
    """The document."""
    version = (results.get("versions") or {}).get("fusion_jax", "")
    return elements.page(
        "Task selection",
        header(results),
        (
            measures(results),
            curves(results),
            savings(results),
            selection_maps.maps(results),
            few(results),
            tasks(results),
            left_out(results),
            cost(results),
            details(results),
        ),
        '<p>Every number of this page is in <a href="results.json">results.json</a>. '
        f"Written by fusion_jax {escape(version)}.</p>",
    )


def header(results: Results) -> str:
    """The answer, and what was run."""
    facts = [
        "Task selection",
        f"{len(results['names'])} tasks",
        f"score: {results['metric']}",
        f"seed {results['seed']}",
    ]
    return (
        f'<p class="eyebrow">{escape(" · ".join(facts))}</p>\n'
        f"<h1>{escape(pairs_line(results))}</h1>\n"
        f'<p class="lead">{escape(saving_line(results))}</p>'
    )


def measures(results: Results) -> str:
    """Every order against measured transfer; '' where not all pairs were tried."""
    if not results["measures"]:
        return ""
    table = measures_table(results)
    rows = [
        Row(
            escape(cells[0]),
            [Cell(escape(cell)) for cell in cells[1:]],
            "own" if name == results["order"] else "",
        )
        for name, cells in zip(ordered(results), table.rows, strict=True)
    ]
    return elements.section(
        "Measures against measured transfer",
        elements.table([escape(c) for c in table.columns], rows),
        note=table.note,
    )


def curves(results: Results) -> str:
    """Survival of the best source, and regret, by the fraction that is kept."""
    judged = results["measures"]
    if not judged:
        return ""
    names = [results["order"], "random", "own_score", "vocabulary_overlap"]
    others = [name for name in ordered(results) if name not in names]
    drawn = {
        label(name): judged[name]["pruning"]
        for name in dict.fromkeys([*names, *others[:_CURVES]])
        if name in judged
    }
    parts = [
        elements.figure(
            selection_plots.pruning(drawn, field, axis),
            f"{axis} of {len(drawn)} orders, by the fraction of sources kept.",
            caption,
        )
        for field, axis, caption in (
            (
                "survival",
                "targets whose best source is kept",
                "How many targets still have their best source.",
            ),
            (
                "regret",
                "mean regret",
                "What the best kept source is short of the best of all.",
            ),
        )
    ]
    return elements.section("Pruning", f'<div class="pair">{"".join(parts)}</div>')


def savings(results: Results) -> str:
    """Seconds with and without the choice, by both accounts."""
    ledger = results["ledger"]
    rows = []
    for account, what in (
        ("per_pair", f"every pair tuned by itself ({ledger['pair']})"),
        ("per_source", "one model a source, tried on every target"),
    ):
        found = ledger["at_keep"][account]
        rows.append(
            Row(
                escape(what),
                [
                    Cell(elements.duration(found["all"])),
                    Cell(elements.duration(found["kept"])),
                    Cell(f"{100 * found['saved']:.1f} %"),
                ],
            )
        )
    curve = ledger["curve"]
    figure = (
        elements.figure(
            selection_plots.saved(curve),
            "Share of the seconds saved by the fraction of sources kept.",
            "Share of the seconds that are saved.",
            wide=True,
        )
        if curve
        else ""
    )
    clock = "of the processor" if ledger["clock"] == "cpu" else "by the wall's clock"
    guessed = (
        f" The trainings of {len(ledger['estimated'])} sources were not timed; they "
        "count as the mean of the others."
        if ledger["estimated"]
        else ""
    )
    return elements.section(
        "What is saved",
        elements.table(["account", "all pairs", "kept pairs", "saved"], rows),
        figure,
        note=f"At {results['keep']:g} of the sources of each target, with what "
        f"measuring took. Seconds {clock}.{guessed}",
    )


def few(results: Results) -> str:
    """Kept pairs tuned on few labelled rows, target by target; '' without them."""
    direct = results["few_shot_direct"]
    if not direct:
        return ""
    rows = []
    for target, plain in direct.items():
        found = [
            (pair["few_shot"], pair["source"])
            for pair in results["pairs"]
            if pair["target"] == target and pair["few_shot"] is not None
        ]
        if not found:
            continue
        best, source = max(found)
        rows.append(
            Row(
                escape(target),
                [
                    Cell(number(plain)),
                    Cell(number(float(np.mean([score for score, _ in found])))),
                    Cell(number(best)),
                    Cell(escape(source)),
                    elements.gain_cell(best - plain),
                ],
            )
        )
    return elements.section(
        "Few-shot",
        elements.table(
            ["target", "plain", "mean of kept", "best of kept", "source", "gain"], rows
        ),
        note="Models of kept sources tuned further on the target's few rows, and the "
        "plain model on the same rows. The best is chosen on the very test rows.",
    )


def tasks(results: Results) -> str:
    """Rows of each task and the score of its own model."""
    rows = [
        Row(
            escape(name),
            [
                *(Cell(str(entry["rows"].get(s, 0))) for s in ("train", "dev", "test")),
                Cell(str(entry["dropped_shared_texts"])),
                Cell(number(entry["own_score"])),
            ],
        )
        for name, entry in results["tasks"].items()
    ]
    columns = ["task", "train", "dev", "test", "shared texts dropped", "own score"]
    return elements.section("Rows", elements.table(columns, rows))


def left_out(results: Results) -> str:
    """Tasks that took no part, and why."""
    rows = [
        Row(escape(name), [Cell(escape(why), "wrapped")])
        for name, why in results["left_out"].items()
    ]
    return elements.section(
        "Left out", elements.table(["task", "why"], rows) if rows else ""
    )
