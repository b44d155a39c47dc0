"""The curves of a run in rounds: scores of the base, with what it is held against."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.ticker import MaxNLocator

from fusion_jax.reports.drawing import (
    ACCENT,
    INK,
    MUTED,
    SERIES,
    STYLE,
    label_ends,
    new_figure,
    render,
)


class Curve(NamedTuple):
    """One curve.

    Attributes:
      label: what it shows.
      points: (round, score) of the bases that were evaluated.
      dashed: drawn with dashes.
    """

    label: str
    points: Sequence[tuple[int, float]]
    dashed: bool = False


def by_round(
    curves: Sequence[Curve], levels: Mapping[str, float], last: int, name: str
) -> str:
    """Scores by round, and others as horizontal lines.

    Args:
      curves: at most a few.
      levels: label -> score of what has no rounds.
      last: the last round.
      name: goes before the ids of the drawing; one of its own for each on a page.
    """
    colors = (ACCENT, SERIES[1], SERIES[2], SERIES[3])
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.0, 3.4)
        labels = []
        for curve, color in zip(curves, colors, strict=False):
            x, y = zip(*curve.points, strict=True)
            axes.plot(
                x,
                y,
                "--" if curve.dashed else "-",
                color=color,
                linewidth=1.8,
                marker="o",
                markersize=3,
            )
            labels.append((y[-1], f"{curve.label} {y[-1]:.3f}", color))
        for label, level in levels.items():
            axes.axhline(level, color=MUTED, linewidth=1, linestyle=":")
            labels.append((level, f"{label} {level:.3f}", INK))
        label_ends(axes, labels)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.set_xlabel("round")
        axes.set_ylabel("mean test score")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return render(figure, name)
