"""The report of a portability study: tables and curves by technique."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fusion_jax.reports import elements, portability_plots
from fusion_jax.reports.elements import Cell, Row
from fusion_jax.reports.portability_table import INITS, PARTS, steps_label
from fusion_jax.reports.tables import interval, number

Results = Mapping[str, Any]

_HEADS = {
    "ported": "The origin's head goes along with every init: the controls differ from "
    "the ported module in the module alone.",
    "fresh": "Every init begins with one freshly drawn head: at 0 steps all are at "
    "chance.",
}


def page(results: Results) -> str:
    """The document of a study."""
    return elements.page(
        "Portability of modules", header(results), sections(results), _footer(results)
    )


def header(results: Results) -> str:
    """The answer, and what was run."""
    summary = results["summary"]
    facts = [
        f"{summary['runs']} runs",
        f"{len(summary['techniques'])} techniques",
        f"{len(results['hosts'])} hosts",
        f"{len(results['data'])} tasks",
        f"{len(summary['seeds'])} seeds"
        if len(summary["seeds"]) > 1
        else f"seed {summary['seeds'][0]}",
    ]
    return (
        f'<p class="eyebrow">{escape(" · ".join(facts))}</p>\n'
        f"<h1>{escape(headline(summary))}</h1>"
    )


def headline(summary: Mapping[str, Any]) -> str:
    """Zero-shot, or after the fewest steps: ported against its best control."""
    part = summary["equal_shapes"] or summary["other_sizes"]
    step = str(summary["steps"][0])
    told = []
    for technique, controls in part["gains"].items():
        least = min(entry[step]["mean"] for entry in controls.values())
        told.append(f"{technique} {number(least, sign=True)}")
    if not told:
        return "Scores of ported modules"
    when = "as they are" if step == "0" else f"after {step} steps"
    return f"Ported modules {when}, against the best control: {', '.join(told)}"


def sections(results: Results) -> Sequence[str]:
    """All sections in reading order."""
    summary = results["summary"]
    found = []
    for part, title in PARTS.items():
        if summary[part]:
            found += [
                curves(summary, part, title),
                scores(summary, part, title),
                gains(summary, part, title),
                pairs(summary, part, title),
            ]
    return (
        *found,
        origins(results),
        leaks(results),
        elements.section(
            "Details",
            elements.settings("Hosts", results["hosts"]),
            elements.settings("Rows", results["data"]),
            elements.settings("Config", results["config"]),
            elements.settings("Seconds", results["seconds"]),
            elements.settings("Versions", results["versions"]),
            note=_HEADS[results["head"]],
        ),
    )


def curves(summary: Mapping[str, Any], part: str, title: str) -> str:
    """Scores by steps: one plot a technique, one curve an init."""
    drawn = []
    for technique, inits in summary[part]["scores"].items():
        drawing = portability_plots.by_steps(
            {INITS[name]: entry for name, entry in inits.items()},
            f"steps-{part}-{technique}",
        )
        said = "; ".join(
            f"{INITS[name]} "
            + ", ".join(f"{step} steps {number(e['score'])}" for step, e in x.items())
            for name, x in inits.items()
        )
        drawn.append(
            elements.figure(drawing, f"{technique}: {said}.", f"{technique}, {title}.")
        )
    return elements.section(
        f"Scores by steps: {title}",
        f'<div class="pair">{"".join(drawn)}</div>',
        note="Mean test score over pairs of hosts, data and seeds; bands are 95 % "
        "bootstrap intervals over test items.",
    )


def scores(summary: Mapping[str, Any], part: str, title: str) -> str:
    """Technique and init by steps."""
    steps = [str(step) for step in summary["steps"]]
    rows = []
    for technique, inits in summary[part]["scores"].items():
        for init, entry in inits.items():
            cells = [_told(entry.get(step)) for step in steps]
            kind = "own" if init == "ported" else ""
            label = f"{escape(technique)}<small>{escape(INITS[init])}</small>"
            rows.append(Row(label, cells, kind))
    seeds = len(summary["seeds"])
    spread = f" ± is the standard deviation over {seeds} seeds." if seeds > 1 else ""
    return elements.section(
        f"Scores: {title}",
        elements.table(["technique, init", *map(steps_label, steps)], rows),
        note=f"Mean over {summary[part]['runs']} runs in all.{spread}",
    )


def gains(summary: Mapping[str, Any], part: str, title: str) -> str:
    """What the ported module is above each control, paired."""
    steps = [str(step) for step in summary["steps"]]
    rows = []
    for technique, controls in summary[part]["gains"].items():
        for control, entry in controls.items():
            cells = []
            for step in steps:
                gain = entry.get(step)
                if gain is None:
                    cells += [elements.absent()] * 3
                    continue
                cells += [
                    elements.gain_cell(gain["mean"]),
                    Cell(interval(gain["interval"])),
                    Cell(f"{gain['better']} of {gain['of']}"),
                ]
            label = f"{escape(technique)}<small>above {escape(INITS[control])}</small>"
            rows.append(Row(label, cells))
    columns = [x for step in steps for x in (steps_label(step), "95 %", "better")]
    return elements.section(
        f"Ported above its controls: {title}",
        elements.table(["technique, control", *columns], rows) if rows else "",
        note="Differences of runs that agree in everything but the init; intervals are "
        "paired over test items.",
    )


def pairs(summary: Mapping[str, Any], part: str, title: str) -> str:
    """Pairs of hosts, and same or different data, at the first number of steps."""
    step = str(summary["steps"][0])
    found = summary[part]
    parts = []
    for heading, groups in (("pair of hosts", "by_pair"), ("data", "by_data")):
        rows = [
            Row(
                f"{escape(group)}<small>{escape(technique)}</small>",
                [
                    elements.score_cell((inits.get(init) or {}).get(step))
                    for init in summary["inits"]
                ],
            )
            for group, techniques in found[groups].items()
            for technique, inits in techniques.items()
        ]
        columns = [escape(INITS[init]) for init in summary["inits"]]
        parts.append(elements.table([heading, *columns], rows))
    return elements.section(f"Pairs and data at {steps_label(step)}: {title}", *parts)


def origins(results: Results) -> str:
    """What the modules do at home."""
    rows = [
        Row(
            f"{escape(one['technique'])}<small>{escape(one['host'])}, "
            f"{escape(one['task'])}, seed {one['seed']}</small>",
            [
                elements.score_cell(one["dev"]),
                elements.score_cell(one["test"]),
                Cell(interval(one["test_interval"])),
            ],
        )
        for one in results["origins"]
    ]
    return elements.section(
        "Origins",
        elements.table(["module", "dev", "test", "95 % interval"], rows),
        note="Each module on the host and data that it was trained on.",
    )


def leaks(results: Results) -> str:
    """Test rows that were left out because the origin has learned from them."""
    rows = [
        Row(
            f"{escape(one['origin_data'])} &gt; {escape(one['receiver_data'])}",
            [Cell(f"{one['left_out']} of {one['of']}")],
        )
        for one in results["leaks"]
        if one["left_out"]
    ]
    note = (
        "Test rows whose text (letters and digits, lower case) stands in the train or "
        "dev rows that the origin learned from. They are not scored; with them, a "
        "score would be of rows that were seen."
    )
    body = elements.table(["data", "rows left out"], rows) if rows else "<p>None.</p>"
    return elements.section("Rows left out", body, note=note)


def _told(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return elements.absent()
    text = number(entry["score"])
    if entry["spread"] is not None:
        text += f" ± {entry['spread']:.3f}"
    return Cell(f"{text}<br><small>{interval(entry['interval'])}</small>")


def _footer(results: Results) -> str:
    version = (results.get("versions") or {}).get("fusion_jax")
    name = f"fusion_jax {version}" if version else "fusion_jax"
    return (
        '<p>Every run of this page is a row of <a href="results.json">results.json</a>.'
        f" Written by {escape(name)}.</p>"
    )
