"""Tables of results as plain text and Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fusion_jax.reports.methods import (
    describe,
    interval_of,
    main_method,
    reference_method,
    reported_split,
    score_of,
)

ABSENT = "–"  # noqa: RUF001 - the dash that a reader takes for 'nothing here'


class Table(NamedTuple):
    """Cells as text.

    Attributes:
      columns: headings; the first column is of names, the others of numbers.
      rows: one tuple of cells a row.
      note: a line to stand below, or ''.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with fixed digits and a true minus; a dash for None."""
    if value is None:
        return ABSENT
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "+" if sign else "")
    return text.replace("-", "\N{MINUS SIGN}")


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """'[0.570, 0.650]'; a dash for None."""
    if bounds is None:
        return ABSENT
    return f"[{number(bounds[0], digits)}, {number(bounds[1], digits)}]"


def difference(score: float | None, other: float | None) -> float | None:
    """Of the rounded numbers, so that a row adds up for the reader; None if one is."""
    if score is None or other is None:
        return None
    return round(score, 3) - round(other, 3)


def ordered_methods(results: Mapping[str, Any]) -> list[str]:
    """The run's own method first, then the others by score, those not run last."""
    split, own = reported_split(results), main_method(results)

    def place(name: str) -> tuple[bool, bool, float]:
        score = score_of(results, name, split)
        return (name != own, score is None, -(score or 0.0))

    return sorted(results.get("methods", {}), key=place)


def results_table(results: Mapping[str, Any]) -> Table:
    """The table of a results.json: of one run, of several, or of a study."""
    if results.get("system") == "portability":
        # That file's tables are made of this one's pieces.
        from fusion_jax.reports.portability_table import study_table

        return study_table(results)
    if "runs" in results:
        return targets_table(results["summary"])
    return methods_table(results)


def methods_table(results: Mapping[str, Any]) -> Table:
    """Methods by dev, test, interval and gain over the mean expert, of one run."""
    split = reported_split(results)
    held = reference_method(results)
    reference = score_of(results, held, split)
    rows, absent = [], False
    for name in ordered_methods(results):
        score = score_of(results, name, split)
        dev = score_of(results, name, "dev")
        gain = difference(score, reference)
        absent |= score is None
        rows.append(
            (
                describe(name).label,
                number(dev),
                number(score_of(results, name, "test")),
                interval(interval_of(results, name)),
                number(gain, sign=True),
            )
        )
    return Table(
        ("method", "dev", "test", "95 % interval", f"vs {describe(held).label}"),
        tuple(rows),
        f"{ABSENT} not run" if absent else "",
    )


def targets_table(summary: Mapping[str, Any]) -> Table:
    """Methods by targets, of `summary.summarise`, with the mean over the targets."""
    targets = summary["targets"]
    rows, absent = [], False
    for name in ordered_summary(summary):
        row = summary["methods"][name]
        cells = [row["targets"][t] for t in targets]
        absent |= any(cell["score"] is None for cell in cells)
        rows.append(
            (
                describe(name).label,
                *(spread_number(cell) for cell in cells),
                number(row["mean"]),
            )
        )
    notes = [f"{ABSENT} not run"] if absent else []
    if len(summary["seeds"]) > 1:
        notes.append(f"mean ± standard deviation over {len(summary['seeds'])} seeds")
    return Table(("method", *targets, "mean"), tuple(rows), "; ".join(notes))


def ordered_summary(summary: Mapping[str, Any]) -> list[str]:
    """Methods of a summary: its own first, then by mean, incomplete ones last."""

    def place(name: str) -> tuple[bool, bool, float]:
        mean = summary["methods"][name]["mean"]
        return (name != summary["method"], mean is None, -(mean or 0.0))

    return sorted(summary["methods"], key=place)


def spread_number(cell: Mapping[str, Any]) -> str:
    """'0.612', or '0.612 ± 0.010' over several seeds."""
    text = number(cell["score"])
    return text if cell["spread"] is None else f"{text} ± {cell['spread']:.3f}"


def to_text(table: Table) -> str:
    """The table for a terminal: numbers right-aligned, two blanks between columns."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]

    def draw(line: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    text = [draw(table.columns), rule, *(draw(row) for row in table.rows)]
    return "\n".join([*text, *([table.note] if table.note else [])]) + "\n"


def to_markdown(table: Table) -> str:
    """The table in Markdown, numbers right-aligned."""

    def draw(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = (
        "|"
        + "|".join(" --- " if i == 0 else " ---: " for i in range(len(table.columns)))
        + "|"
    )
    text = [draw(table.columns), rule, *(draw(row) for row in table.rows)]
    return "\n".join([*text, *(["", table.note] if table.note else [])]) + "\n"
