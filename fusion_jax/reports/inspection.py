"""Writes the report of an inspection: numbers, two heat maps, one HTML page."""

import base64
import os
from html import escape
from pathlib import Path

from fusion_jax import atomic
from fusion_jax.checkpoints.inspection.advice import advice
from fusion_jax.checkpoints.inspection.inspect import Inspection
from fusion_jax.reports import elements, inspection_plots
from fusion_jax.reports.elements import Cell, Row
from fusion_jax.reports.inspection_tables import (
    findings_table,
    groups_table,
    models_table,
    pairs_table,
)
from fusion_jax.reports.tables import Table
from fusion_jax.version import __version__


def write_inspection(
    inspection: Inspection, directory: str | os.PathLike[str]
) -> list[Path]:
    """Writes inspect.json, inspect.html, norms.png and, of pairs, cosine.png.

    Other files of the directory stay as they are.

    Args:
      inspection: what was found.
      directory: made if it is not there.

    Returns:
      The files, the page first.

    Raises:
      atomic.WriteFailed: a file cannot be written; what stood there is untouched.
    """
    folder = Path(directory)
    images = {
        "cosine.png": inspection_plots.cosines(inspection),
        "norms.png": inspection_plots.norms(inspection),
    }
    drawn = {name: image for name, image in images.items() if image is not None}
    for name, image in drawn.items():
        atomic.write_bytes(folder / name, image)
    atomic.write_json(folder / "inspect.json", record(inspection))
    # The page last: where it is there, all that it names is.
    atomic.write_text(folder / "inspect.html", page(inspection, drawn))
    return [folder / name for name in ("inspect.html", "inspect.json", *drawn)]


def record(inspection: Inspection) -> dict:
    """The numbers and the advice, for JSON."""
    return inspection.record() | {"advice": advice(inspection)}


def headline(inspection: Inspection) -> str:
    """What was compared with what, in a line."""
    count = len(inspection.models)
    return (
        f"{count} model{'s' if count > 1 else ''} against the {inspection.reference}: "
        f"{inspection.elements[-1]:,} elements in {inspection.tensors} tensors "
        f"({', '.join(inspection.dtypes)})"
    )


def page(inspection: Inspection, images: dict[str, bytes]) -> str:
    """The HTML document; it loads nothing."""
    said = advice(inspection)
    figures = {
        "cosine.png": "Cosine of the task vectors of each pair: blue is one direction, "
        "red the opposite, white orthogonal.",
        "norms.png": "Norm of each task vector over the norm of the reference.",
    }
    drawings = [
        _image(images[name], caption)
        for name, caption in figures.items()
        if name in images
    ]
    findings = findings_table(inspection)
    listed = "".join(f"<li>{escape(line)}</li>" for line in said)
    sections = (
        elements.section("What stands out", f"<ul>{listed}</ul>" if said else ""),
        elements.section("Findings", _html(findings) if findings.rows else ""),
        elements.section("Models", _html(models_table(inspection))),
        elements.section(
            "Pairs", _html(pairs_table(inspection)) if inspection.pairs else ""
        ),
        elements.section(f"By {inspection.by}", *drawings),
        elements.section("Numbers", _html(groups_table(inspection))),
    )
    header = (
        '<p class="eyebrow">Inspection before a merge</p>\n'
        f"<h1>{escape(', '.join(inspection.models))}</h1>\n"
        f'<p class="lead">{escape(headline(inspection))}</p>'
    )
    footer = (
        '<p>Every number of this page is in <a href="inspect.json">inspect.json</a>. '
        f"Written by fusion_jax {escape(__version__)}.</p>"
    )
    return elements.page("Inspection", header, sections, footer)


def _html(table: Table) -> str:
    rows = [
        Row(escape(name), [Cell(escape(cell)) for cell in cells])
        for name, *cells in table.rows
    ]
    words = table.columns[0] == "finding"
    drawn = elements.table(
        [escape(column) for column in table.columns],
        rows,
        # Details are sentences: they are broken, not scrolled.
        kind="settings" if words else "",
    )
    return drawn + (f'<p class="note">{escape(table.note)}</p>' if table.note else "")


def _image(data: bytes, caption: str) -> str:
    text = base64.b64encode(data).decode()
    return (
        f'<figure>\n<img alt="{escape(caption)}" style="max-width: 100%; height: auto" '
        f'src="data:image/png;base64,{text}">\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )
