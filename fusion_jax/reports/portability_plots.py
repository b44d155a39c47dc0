"""The curves of a portability study: scores by steps, one curve an init."""

from collections.abc import Mapping
from typing import Any

import matplotlib

from fusion_jax.reports.drawing import (
    ACCENT,
    SERIES,
    STYLE,
    label_ends,
    new_figure,
    render,
)


def by_steps(inits: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Mean scores by steps with their intervals.

    Args:
      inits: label -> steps -> {'score', 'interval'}; the first is drawn strongest.
      name: goes before the ids of the drawing; one of its own for each on a page.
    """
    colors = (ACCENT, *SERIES[1:])
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.0, 3.4)
        labels = []
        for (label, entries), color in zip(inits.items(), colors, strict=False):
            steps = sorted(int(step) for step in entries)
            found = [entries[str(step)] for step in steps]
            scores = [entry["score"] for entry in found]
            low, high = zip(*(entry["interval"] for entry in found), strict=True)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(
                steps,
                scores,
                color=color,
                linewidth=2.2 if not labels else 1.4,
                marker="o",
                markersize=3,
            )
            labels.append((scores[-1], label, color))
        label_ends(axes, labels)
        axes.set_xlabel("steps on the receiver's data")
        axes.set_ylabel("mean test score")
        return render(figure, name)
