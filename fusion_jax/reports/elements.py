"""Pieces of HTML that every report is made of."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from fusion_jax.reports.style import STYLE
from fusion_jax.reports.tables import ABSENT, number


class Cell(NamedTuple):
    """One cell of an HTML table.

    Attributes:
      html: what it holds, already escaped.
      kind: CSS class, or ''.
    """

    html: str
    kind: str = ""


class Row(NamedTuple):
    """One row: its name (escaped HTML), cells, and CSS class."""

    name: str
    cells: Sequence[Cell]
    kind: str = ""


def page(title: str, header: str, sections: Iterable[str], footer: str) -> str:
    """A whole document; it loads nothing."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n{header}\n</header>\n<main>\n{body}\n</main>\n"
        f"<footer>\n{footer}\n</footer>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str, note: str = "", level: int = 2) -> str:
    """A heading, a line below it, and what follows; '' if nothing follows."""
    body = "\n".join(part for part in parts if part)
    if not body:
        return ""
    line = f'<p class="note">{escape(note)}</p>\n' if note else ""
    heading = f"<h{level}>{escape(title)}</h{level}>"
    return f"<section>\n{heading}\n{line}{body}\n</section>"


def table(
    columns: Sequence[str],
    rows: Iterable[Row],
    *,
    foot: Iterable[Row] = (),
    kind: str = "",
    caption: str = "",
) -> str:
    """A table that scrolls sideways on a narrow screen; columns are escaped HTML."""

    def draw(row: Row) -> str:
        cells = "".join(
            f'<td class="{c.kind}">{c.html}</td>' if c.kind else f"<td>{c.html}</td>"
            for c in row.cells
        )
        opening = f'<tr class="{row.kind}">' if row.kind else "<tr>"
        return f'{opening}<th scope="row">{row.name}</th>{cells}</tr>'

    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "\n".join(draw(row) for row in rows)
    below = "\n".join(draw(row) for row in foot)
    return (
        f'<div class="scroll"><table{f" class={kind!r}" if kind else ""}>'
        + (f"<caption>{escape(caption)}</caption>" if caption else "")
        + (f"<thead><tr>{head}</tr></thead>" if any(columns) else "")
        + f"\n<tbody>\n{body}\n</tbody>"
        + (f"<tfoot>{below}</tfoot>" if below else "")
        + "</table></div>"
    )


def score_cell(value: float | None, *, best: bool = False) -> Cell:
    """A score, or a dash that says 'not run'."""
    if value is None:
        return absent()
    return Cell(number(value), "best" if best else "")


def absent(why: str = "not run") -> Cell:
    """A dash; the reason is its title and is read out."""
    return Cell(
        f'<span title="{escape(why)}" aria-label="{escape(why)}">{ABSENT}</span>',
        "absent",
    )


def gain_cell(value: float | None) -> Cell:
    """A signed difference, coloured by its sign."""
    if value is None:
        return absent()
    text = number(value, sign=True)
    kind = "" if float(f"{value:.3f}") == 0 else "good" if value > 0 else "bad"
    return Cell(f'<span class="{kind}">{text}</span>' if kind else text)


def figure(svg: str, alt: str, caption: str, *, wide: bool = False) -> str:
    """A plot with a text that says what it shows."""
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    kind = ' class="wide"' if wide else ""
    return (
        f"<figure{kind}>\n{labelled}\n<figcaption>{escape(caption)}</figcaption>\n"
        "</figure>"
    )


def interval_drawing(
    score: float | None,
    bounds: tuple[float, float] | None,
    ends: tuple[float, float],
    reference: float | None,
    width: int = 160,
) -> Cell:
    """A dot with its interval on the scale of the column, for eyes only."""
    span = max(ends[1] - ends[0], 1e-9)

    def place(value: float) -> str:
        return f"{4 + (width - 8) * (value - ends[0]) / span:.1f}"

    parts = []
    if reference is not None:
        x = place(reference)
        parts.append(f'<line class="rule mean" x1="{x}" x2="{x}" y1="0" y2="22"/>')
    if bounds is not None:
        low, high = place(bounds[0]), place(bounds[1])
        parts.append(f'<line class="range" x1="{low}" x2="{high}" y1="11" y2="11"/>')
    if score is not None:
        parts.append(f'<circle class="dot" cx="{place(score)}" cy="11" r="4"/>')
    drawing = "".join(parts)
    return Cell(
        f'<svg width="{width}" height="22" aria-hidden="true">{drawing}</svg>', "draw"
    )


def bar_drawing(
    value: float | None, ends: tuple[float, float], width: int = 160
) -> Cell:
    """A bar from zero on the scale of the column, for eyes only."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = width / max(high - low, 1e-9)
    zero = -low * scale
    parts = []
    if value is not None:
        start = zero + min(value, 0.0) * scale
        kind = "bar" if value >= 0 else "bar minus"
        size = max(abs(value) * scale, 1.0)
        parts.append(
            f'<rect class="{kind}" x="{start:.1f}" y="5" width="{size:.1f}" '
            'height="12" rx="1.5"/>'
        )
    if low < 0:
        parts.append(
            f'<line class="rule" x1="{zero:.1f}" x2="{zero:.1f}" y1="1" y2="21"/>'
        )
    drawing = "".join(parts)
    return Cell(
        f'<svg width="{width}" height="22" aria-hidden="true">{drawing}</svg>', "draw"
    )


def settings(title: str, values: Mapping[str, Any]) -> str:
    """A folded table of names and values, nested ones with dotted names."""
    flat = dict(_flatten(values))
    if not flat:
        return ""
    rows = [Row(escape(name), [Cell(escape(text))]) for name, text in flat.items()]
    return (
        f"<details><summary>{escape(title)}</summary>"
        f"{table(('', ''), rows, kind='settings')}</details>"
    )


def duration(seconds: float) -> str:
    """'41 s', '3 min 20 s' or '2 h 5 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", ", ".join(str(x) for x in value) or ABSENT
        else:
            yield f"{prefix}{name}", ABSENT if value in (None, "") else str(value)
