"""The plots of a task selection: heat maps, the tree of tasks, the pruning curve."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import Normalize

from fusion_jax.reports.drawing import (
    ACCENT,
    LINE,
    MUTED,
    SERIES,
    STYLE,
    new_figure,
    render,
)

_INCH = 0.13  # a row of a heat map or a leaf of a tree


def tree_of(distances: np.ndarray) -> np.ndarray:
    """Average linkage of tasks, [N - 1, 4], of the mean of both directions."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    both = (np.asarray(distances) + np.asarray(distances).T) / 2
    np.fill_diagonal(both, 0)
    # Estimates without bias may be below zero, which no tree can draw.
    return linkage(squareform(np.maximum(both, 0), checks=False), "average")


def leaves_of(tree: np.ndarray) -> list[int]:
    """Tasks in the order of the tree's leaves."""
    from scipy.cluster.hierarchy import leaves_list

    return [int(i) for i in leaves_list(tree)]


def dendrogram(tree: np.ndarray, names: Sequence[str], label: str) -> str:
    """The tree of tasks, from the left: what joins early is alike.

    Args:
      tree: of `tree_of`.
      names: of the tasks.
      label: what the distance is.
    """
    from scipy.cluster import hierarchy

    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(6.5, 0.8 + max(_INCH * len(names), 1.2))
        drawn = hierarchy.dendrogram(
            tree, orientation="right", labels=list(names), no_plot=True
        )
        for places, heights in zip(drawn["icoord"], drawn["dcoord"], strict=True):
            axes.plot(heights, places, color=ACCENT, linewidth=1)
        axes.set_yticks(np.arange(len(names)) * 10 + 5, drawn["ivl"], fontsize=6)
        axes.set_ylim(0, 10 * len(names))
        axes.set_xlim(left=0)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(label)
        return render(figure, "dendrogram")


def heat_map(
    table: np.ndarray,
    names: Sequence[str],
    *,
    title: str,
    name: str,
    centred: bool,
) -> str:
    """A table of pairs: rows are sources, columns are targets.

    Args:
      table: [N, N]; NaN is left blank.
      names: of the tasks, in the order of the table.
      title: what the colours are.
      name: of the plot in the page.
      centred: whether zero is the middle of the colours.
    """
    values = np.asarray(table, float)
    known = values[np.isfinite(values)]
    # A few pairs far out would make all others one colour.
    if centred:
        high = float(np.quantile(np.abs(known), 0.98)) or 1.0
        low, colors = -high, "RdBu"
    else:
        low, high = (float(np.quantile(known, q)) for q in (0.02, 0.98))
        colors = "YlGnBu_r"
    side = 1.6 + max(_INCH * len(names), 3.0)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(side + 0.5, side)
        image = axes.imshow(
            np.ma.masked_invalid(values),
            cmap=colors,
            norm=Normalize(low, high),
            aspect="auto",
            interpolation="nearest",
        )
        places = range(len(names))
        axes.set_yticks(places, list(names), fontsize=6)
        axes.set_xticks(places, list(names), fontsize=6, rotation=90)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("target")
        axes.set_ylabel("source")
        bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40)
        bar.set_label(title, color=MUTED)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(length=0)
        return render(figure, name)


def pruning(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], field: str, label: str
) -> str:
    """What keeping fewer sources costs, one line an order.

    Args:
      curves: order -> points with 'keep' and the field.
      field: of the points.
      label: of the axis.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.0, 4.2)
        for k, (name, points) in enumerate(curves.items()):
            axes.plot(
                [point["keep"] for point in points],
                [point[field] for point in points],
                color=SERIES[k % len(SERIES)],
                linewidth=1.6,
                marker="o",
                markersize=2.5,
                linestyle="-" if k < len(SERIES) else "--",
                label=name,
            )
        axes.set_xlabel("kept sources of each target")
        axes.set_ylabel(label)
        figure.legend(fontsize=8, loc="outside lower center", ncols=2)
        return render(figure, f"pruning-{field}")


def saved(curve: Sequence[Mapping[str, Any]]) -> str:
    """Share of the seconds that are saved, by both accounts."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.0, 3.4)
        for color, account, label in (
            (ACCENT, "per_pair", "every pair tuned by itself"),
            (SERIES[1], "per_source", "one model a source"),
        ):
            axes.plot(
                [point["keep"] for point in curve],
                [point[account]["saved"] for point in curve],
                color=color,
                linewidth=1.6,
                marker="o",
                markersize=2.5,
                label=label,
            )
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.set_xlabel("kept sources of each target")
        axes.set_ylabel("share of the seconds saved")
        axes.legend(fontsize=8, loc="best")
        return render(figure, "saved")
