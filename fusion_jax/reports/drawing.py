"""How plots are drawn: as inline SVG that follows the page's light or dark colours.

matplotlib draws with placeholder colours; `render` replaces them by CSS variables, so
one drawing serves both themes, and the text stays text.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib.backends.backend_svg
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT, PAPER = (f"#00000{i}" for i in range(1, 6))
SERIES = tuple(f"#0000a{i}" for i in range(8))
"""Placeholders; the page defines --ink, --muted, --line, --accent, --paper, --c0..7."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    ACCENT: "--accent",
    PAPER: "--paper",
} | {color: f"--c{i}" for i, color in enumerate(SERIES)}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fusion_jax",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
    "figure.constrained_layout.use": True,
}


def render(figure: Figure, name: str) -> str:
    """A figure as an <svg> element without size, its colours the page's variables."""
    buffer = io.BytesIO()
    matplotlib.backends.backend_svg.FigureCanvasSVG(figure).print_svg(
        buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    # The page's font; and names that do not meet those of another plot of the page.
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text.strip()


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names curves at the right of the axes, none over another.

    Args:
      axes: with everything drawn.
      labels: (value at the curve's end, text, colour) of each.
    """
    low, high = axes.get_ylim()
    places = spread_labels([value for value, *_ in labels], 0.075 * (high - low))
    for (_, text, color), place in zip(labels, places, strict=True):
        axes.annotate(
            text,
            (1.0, place),
            (1.02, place),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            color=color,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def spread_labels(values: Sequence[float], gap: float) -> np.ndarray:
    """Heights near `values` that are at least `gap` apart, in the same order."""
    wanted = np.asarray(values, float)
    order = np.argsort(wanted, kind="stable")
    # Least squares under a minimal gap: pool neighbours that would overlap.
    blocks: list[list[float]] = []
    shifted = wanted[order] - gap * np.arange(len(wanted))
    for value in shifted:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    flat = np.concatenate([[np.mean(b)] * len(b) for b in blocks] or [[]])
    placed = np.empty(len(wanted))
    placed[order] = flat + gap * np.arange(len(wanted))
    return placed


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure of one plot, in inches; drawn under `rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height))
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(length=0)
    return figure, axes
