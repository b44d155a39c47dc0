"""Sections of runs that test in unseen domains: dataless fusion."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fusion_jax.reports import elements
from fusion_jax.reports.elements import Cell, Row
from fusion_jax.reports.methods import describe
from fusion_jax.reports.tables import ABSENT, interval, number

Results = Mapping[str, Any]


def unseen(results: Results) -> str:
    """Scores in domains that no owner knows, task by task; '' where there are none."""
    found = {
        name: entry["out_of_domain"]
        for name, entry in (results.get("methods") or {}).items()
        if (entry or {}).get("out_of_domain")
    }
    if not found:
        return ""
    tasks = list(next(iter(found.values()))["tasks"])
    rows = [
        Row(
            escape(describe(name).label),
            [
                elements.score_cell(domain["score"]),
                Cell(interval(domain["interval"])),
                *(elements.score_cell(domain["tasks"].get(task)) for task in tasks),
            ],
            "own" if name == "regmean" else "",
        )
        for name, domain in sorted(found.items(), key=lambda x: -x[1]["score"])
    ]
    return elements.section(
        "Unseen domains",
        elements.table(["method", "mean", "95 % interval", *map(escape, tasks)], rows),
        note="Scores on test rows of domains of which no owner has any.",
    )


def choices(results: Results) -> str:
    """What each method tried and took, by the owners' dev rows."""
    chosen = results.get("chosen") or {}
    rows = []
    for name, entry in chosen.items():
        tried = [
            ", ".join(
                f"{option} {value:g}"
                for option, value in one.items()
                if option != "dev"
            )
            + f": {number(one['dev'])}"
            for one in entry["tried"]
        ]
        if len(tried) < 2:
            continue
        taken = ", ".join(f"{o} {v:g}" for o, v in entry["options"].items())
        rows.append(
            Row(
                escape(describe(name).label),
                [Cell(escape(taken)), Cell(escape("; ".join(tried)))],
            )
        )
    if not rows:
        return ""
    return elements.section(
        "Chosen on dev", elements.table(["method", "taken", "dev of each"], rows)
    )


def ranking(results: Results) -> str:
    """How often one method is above another, over all groups and seeds."""
    found = results.get("ranking") or {}
    rows = []
    for domain, pairs in found.items():
        for pair, entry in pairs.items():
            one, other = pair.split(" > ")
            rows.append(
                Row(
                    escape(f"{describe(one).label} above {describe(other).label}"),
                    [
                        Cell(escape(domain.replace("_", " "))),
                        Cell(f"{entry['wins']} of {entry['of']}"),
                        Cell(number(entry["mean_difference"], sign=True)),
                    ],
                )
            )
    if not rows:
        return ""
    return elements.section(
        "Which is above which",
        elements.table(["pair", "domains", "groups", "mean difference"], rows),
    )


def unseen_summary(summary: Mapping[str, Any] | None) -> str:
    """Methods by groups in unseen domains; '' where there are none."""
    if not summary:
        return ""
    groups: Sequence[str] = summary["targets"]
    rows = [
        Row(
            escape(describe(name).label),
            [
                elements.score_cell(row["mean"]),
                *(elements.score_cell(row["targets"][g]["score"]) for g in groups),
            ],
            "own" if name == summary["method"] else "",
        )
        for name, row in sorted(
            summary["methods"].items(), key=lambda item: -(item[1]["mean"] or 0)
        )
    ]
    return elements.section(
        "Unseen domains",
        elements.table(["method", "mean", *map(escape, groups)], rows, kind="targets"),
        note="Scores on test rows of domains of which no owner of the group has any. "
        f"{ABSENT} means not run.",
    )
