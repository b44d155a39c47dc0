"""Heat maps of an inspection as PNG: groups by pairs, and groups by models."""

import io
import math
from typing import Any

import matplotlib
import matplotlib.backends.backend_agg
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from fusion_jax.checkpoints.inspection.inspect import Inspection
from fusion_jax.reports.inspection_tables import letters, pair_letters

INK, MUTED, PAPER, GREY = "#1a1f29", "#5c6675", "#ffffff", "#eceef2"

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}

_ROW, _NUMBERS = 0.27, 120  # inches a row; rows above which cells hold no numbers
_TALLEST = 60.0


def cosines(inspection: Inspection) -> bytes | None:
    """Cosines of task vectors, a row a group and a column a pair; None without pairs.

    Blue is one direction, red the opposite, white orthogonal; grey is undefined.
    """
    if not inspection.pairs:
        return None
    return _heat_map(
        inspection,
        inspection.cosines,
        pair_letters(inspection),
        "cosine of the task vectors",
        colors="RdBu",
        scale=Normalize(-1, 1),
        form="{:.2f}",
    )


def norms(inspection: Inspection) -> bytes:
    """Relative norms of task vectors, a row a group and a column a model."""
    known = inspection.relative[inspection.relative > 0]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    # Of values that are far apart a linear scale would show only the largest.
    wide = low > 0 and high > 10 * low
    return _heat_map(
        inspection,
        inspection.relative,
        letters(inspection),
        "relative norm of the task vectors" + (" (log scale)" if wide else ""),
        colors="YlGnBu",
        scale=LogNorm(low, high) if wide else Normalize(0, max(high, 1e-12)),
        form="{:.2g}",
    )


def _heat_map(
    inspection: Inspection,
    values: np.ndarray,
    columns: list[str],
    title: str,
    *,
    colors: str,
    scale: Normalize,
    form: str,
) -> bytes:
    rows, count = values.shape
    longest = max(len(group) for group in inspection.groups)
    key = [
        f"{mark}  {name}"
        for mark, name in zip(letters(inspection), inspection.models, strict=True)
    ]
    left = 0.3 + 0.075 * longest
    width = max(left + 0.56 * count + 0.9, 5.0, 0.075 * max(map(len, key)) + 1.0)
    height = min(_ROW * rows, _TALLEST) + 0.95 + 0.16 * (len(key) + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
        axes = figure.subplots()
        palette = matplotlib.colormaps[colors].with_extremes(bad=GREY, under=GREY)
        image = axes.imshow(
            np.ma.masked_invalid(values), cmap=palette, norm=scale, aspect="auto"
        )
        step = math.ceil(rows / (_TALLEST / _ROW))
        places = [g for g in range(rows) if g % step == 0 or g == rows - 1]
        axes.set_yticks(places, [inspection.groups[g] for g in places])
        axes.set_xticks(range(count), columns)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        # White lines between cells, and a stronger one above the total.
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", axis="x", color=PAPER, linewidth=1)
        axes.tick_params(which="minor", length=0)
        axes.axhline(rows - 1.5, color=PAPER, linewidth=4)
        axes.set_title(f"{title}, by {inspection.by}", pad=10)
        if rows <= _NUMBERS:
            for (g, k), value in np.ndenumerate(values):
                text = form.format(value) if np.isfinite(value) else "–"  # noqa: RUF001
                shade = palette(scale(value)) if np.isfinite(value) else (0.9,) * 4
                dark = np.dot(shade[:3], (0.3, 0.6, 0.1)) < 0.5
                axes.text(
                    k,
                    g,
                    text.replace("-", "\N{MINUS SIGN}") if "e" not in text else text,
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=PAPER if dark else INK,
                )
        # Plain numbers; powers of ten are hard to hold beside the cells.
        ticks = LogLocator(subs=(1, 2, 5)) if isinstance(scale, LogNorm) else None
        bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30, ticks=ticks)
        bar.ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(length=0)
        figure.supxlabel(
            "\n".join([*key, f"deltas to the {_short(inspection)}"]),
            x=0.01,
            ha="left",
            fontsize=8,
            color=MUTED,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
        return buffer.getvalue()


def _short(inspection: Inspection) -> str:
    if inspection.base is None:
        return inspection.reference
    return f"base ({inspection.base.name})"
