"""The page of a weight repository: contributors' scores by round, every verdict."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ticker import MaxNLocator

from fusion_jax import atomic
from fusion_jax.reports import elements
from fusion_jax.reports.drawing import SERIES, STYLE, new_figure, render
from fusion_jax.reports.elements import Cell, Row
from fusion_jax.reports.tables import ABSENT, Table, number
from fusion_jax.version import __version__


def write_repository_report(
    status: Mapping[str, Any], path: str | os.PathLike[str]
) -> Path:
    """Writes the page.

    Args:
      status: of `collaboration.status.status`.
      path: the file to write.

    Raises:
      atomic.WriteFailed: the file cannot be written; what stood there is untouched.
    """
    target = Path(path)
    atomic.write_text(target, page(status))
    return target


def rounds_table(status: Mapping[str, Any]) -> Table:
    """One row a base: what went in, what was left out, what it took."""
    rows = []
    for base in status["bases"]:
        taken = sum(base["seconds"].values())
        peak = base["memory"].get("peak_bytes")
        rows.append(
            (
                str(base["round"]),
                base["sha256"][:12],
                str(len(base["parts"])) if base["round"] else ABSENT,
                str(len(base["rejected"])) if base["round"] else ABSENT,
                base["method"] or ABSENT,
                number(mean_score(base["parts"])),
                f"{taken:.1f}" if base["seconds"] else ABSENT,
                f"{peak / 1e6:.0f}" if peak else ABSENT,
                base["created"],
            )
        )
    return Table(
        (
            "base",
            "weights",
            "taken",
            "rejected",
            "method",
            "dev score",
            "seconds",
            "MB",
            "created",
        ),
        tuple(rows),
    )


def mean_score(parts: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean of the contributors' own dev scores; None where nobody told one."""
    told = [part["scores"]["dev"] for part in parts if "dev" in part["scores"]]
    return sum(told) / len(told) if told else None


def page(status: Mapping[str, Any]) -> str:
    """The HTML document; it loads nothing."""
    bases, waiting = status["bases"], status["waiting"]
    contributors = {part["contributor"] for base in bases for part in base["parts"]}
    newest = bases[-1]
    header = (
        '<p class="eyebrow">Weight repository</p>\n'
        f"<h1>Base {status['round']}</h1>\n"
        f'<p class="lead">{escape(status["url"])}: {len(contributors)} contributors '
        f"in {status['round']} rounds, {len(waiting)} contributions waiting. Weights "
        f"{newest['sha256']}.</p>"
    )
    sections = (
        elements.section("Rounds", _curve(bases), _plain(rounds_table(status))),
        elements.section(
            "Contributions",
            _contributions(bases),
            note="Scores are the contributors' own, on their own dev rows.",
        ),
        elements.section("Rejected", _rejected(bases)),
        elements.section("Waiting", _waiting(waiting)),
        elements.section(
            "How the newest base was made",
            elements.settings("options of the fuse and limits", newest["operator"]),
        ),
    )
    footer = f"<p>Written by fusion_jax {escape(__version__)}.</p>"
    return elements.page(f"Base {status['round']}", header, sections, footer)


def _curve(bases: Sequence[Mapping[str, Any]]) -> str:
    """Dev scores by round, a line for each task that came more than once."""
    by_task: dict[str, list[tuple[int, float]]] = {}
    for base in bases:
        for part in base["parts"]:
            if "dev" in part["scores"]:
                place = by_task.setdefault(part["task"], [])
                place.append((base["round"], part["scores"]["dev"]))
    means = [(b["round"], mean_score(b["parts"])) for b in bases if b["parts"]]
    told = [(round_, score) for round_, score in means if score is not None]
    if len(told) < 2:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(6.4, 3.4)
        for points in by_task.values():
            if len(points) > 1:
                axes.plot(*zip(*points, strict=True), color=SERIES[1], alpha=0.35)
        axes.plot(*zip(*told, strict=True), color=SERIES[0], marker="o", linewidth=2)
        axes.set_xlabel("round")
        axes.set_ylabel("dev score of contributors")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing = render(figure, "rounds")
    return elements.figure(
        drawing,
        "Scores of contributors by round",
        "Mean of what contributors reached on their own dev rows, and each task that "
        "came more than once. Other tasks come in other rounds, so read the lines of "
        "tasks rather than the mean.",
        wide=True,
    )


def _contributions(bases: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        Row(
            escape(part["contributor"]),
            [
                Cell(str(base["round"])),
                Cell(escape(part["task"])),
                Cell(str(part["rounds_late"])),
                Cell(number(part["weight"])),
                elements.score_cell(part["scores"].get("dev")),
                Cell(escape(part["sha256"][:12])),
            ],
        )
        for base in bases
        for part in base["parts"]
    ]
    columns = (
        "contributor",
        "round",
        "task",
        "rounds late",
        "weight",
        "dev",
        "weights",
    )
    return elements.table(columns, rows) if rows else ""


def _rejected(bases: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        Row(
            escape(one["contributor"] or one["manifest"]),
            [Cell(str(base["round"])), Cell(escape("; ".join(one["reasons"])))],
        )
        for base in bases
        for one in base["rejected"]
    ]
    columns = ("contributor", "round", "why")
    return elements.table(columns, rows, kind="settings") if rows else ""


def _waiting(waiting: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        Row(
            escape(one.get("contributor", one["manifest"])),
            [
                Cell(escape(one.get("task", ABSENT))),
                Cell(str(one.get("base_round", ABSENT))),
                Cell(escape(one["fault"] or one.get("created", ""))),
            ],
        )
        for one in waiting
    ]
    columns = ("contributor", "task", "from base", "handed in, or what is wrong")
    return elements.table(columns, rows, kind="settings") if rows else ""


def _plain(table: Table) -> str:
    rows = [
        Row(escape(name), [Cell(escape(cell)) for cell in cells])
        for name, *cells in table.rows
    ]
    return elements.table([escape(column) for column in table.columns], rows)
