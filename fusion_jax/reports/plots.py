"""The plots of a report, each an <svg> element for the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from fusion_jax.reports.drawing import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    PAPER,
    SERIES,
    STYLE,
    new_figure,
    render,
    spread_labels,
)


def fitness(evaluations: Sequence[Mapping[str, Any]], label: str = "fitness") -> str:
    """Fitness of every candidate in order, with the best so far.

    Args:
      evaluations: dicts with 'fitness' (None or not finite: left out of the plot) and
        'origin' ('warm' or 'search').
      label: what the fitness is.
    """
    values = np.array([_number(e["fitness"]) for e in evaluations])
    warm = np.array([e.get("origin") == "warm" for e in evaluations], bool)
    count = np.arange(1, len(values) + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.0, 3.4)
        shown = np.isfinite(values)
        for chosen, color, marker, name in (
            (shown & warm, SERIES[3], "D", "start points"),
            (shown & ~warm, ACCENT, "o", "candidates"),
        ):
            if chosen.any():
                axes.scatter(
                    count[chosen],
                    values[chosen],
                    s=18,
                    color=color,
                    marker=marker,
                    alpha=0.6,
                    linewidths=0,
                    label=name,
                )
        if shown.any():
            best = np.fmin.accumulate(np.where(shown, values, np.nan))
            axes.step(
                count, best, where="post", color=INK, linewidth=1.6, label="best so far"
            )
            _trim_outliers(axes, values[shown], best)
        axes.set_xlabel("candidate evaluations")
        axes.set_ylabel(f"{label} (lower is better)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if shown.any():
            axes.legend(
                loc="lower right",
                bbox_to_anchor=(1, 1),
                ncols=3,
                fontsize=9,
                handletextpad=0.2,
                columnspacing=1.0,
                borderaxespad=0.1,
            )
        return render(figure, "fitness")


def coefficient_paths(means: Any, names: Sequence[str]) -> str:
    """The coefficients of the distribution's mean by generation, one line an expert.

    Args:
      means: [generations, K], or [generations, G, K]: the mean over groups is drawn.
      names: K names of experts.
    """
    paths = _paths(means)
    generations = np.arange(len(paths))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.0, 3.4)
        for k, name in enumerate(names):
            color = SERIES[k % len(SERIES)]
            style = "-" if k < len(SERIES) else "--"
            axes.plot(
                generations,
                paths[:, k],
                style,
                color=color,
                linewidth=1.8,
                marker="o",
                markersize=2.5,
                label=name,
            )
        low, high = axes.get_ylim()
        places = spread_labels(paths[-1], 0.075 * (high - low))
        for k, (name, place) in enumerate(zip(names, places, strict=True)):
            axes.annotate(
                f"{name} {paths[-1, k]:.2f}",
                (generations[-1], paths[-1, k]),
                (1.02, place),
                textcoords=axes.get_yaxis_transform(),
                color=SERIES[k % len(SERIES)],
                fontsize=9,
                va="center",
                annotation_clip=False,
            )
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.set_xlabel("generation")
        axes.set_ylabel("coefficient")
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return render(figure, "coefficients")


def plane(data: Mapping[str, Any], names: Sequence[str], label: str = "loss") -> str:
    """The loss over the plane through three experts, with the search's walk.

    A point (u, v) is (1 - u - v) a + u b + v c of the experts a, b, c, drawn as a
    triangle of equal sides. Stronger colour is lower loss; the levels are quantiles,
    so that a steep rim does not hide the valley.

    Args:
      data: 'experts' three indices into `names` (or three names), 'points' [[u, v]],
        'loss' one a point, 'walk' [[u, v]] of the distribution's mean.
      names: K names of experts.
      label: what the loss is.
    """
    grid = np.asarray(data["points"], float)
    corners = [str(x if isinstance(x, str) else names[x]) for x in data["experts"]]
    values = np.array([_number(x) for x in data["loss"]])
    # As far beyond the third side as beyond the others: a square grid's far corner
    # extrapolates all three experts and would dwarf the rest.
    near = 1.0 - grid.sum(axis=1) >= min(grid.min(), 0.0) - 1e-6
    kept = np.isfinite(values) & near
    points, values = _on_page(grid[kept]), values[kept]
    shares = np.linspace(0, 1, 11)
    levels = np.unique(np.quantile(values, shares) if len(values) else [])
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(6.4, 5.2)
        axes.set_axis_off()
        axes.set_aspect("equal")
        if len(levels) > 2 and len(values) > 3:
            shades = np.linspace(0.8, 0.03, len(levels) - 1)
            mesh = Triangulation(*points.T)
            axes.tricontourf(
                mesh,
                values,
                levels=levels,
                colors=[_with_alpha(ACCENT, a) for a in shades],
            )
            drawn = levels[1:-1:2]
            lines = axes.tricontour(
                mesh, values, levels=drawn, colors=[MUTED], linewidths=0.6
            )
            # Names stand outside the triangle: only the inner lines are labelled.
            inner = drawn[: (len(drawn) + 1) // 2]
            axes.clabel(lines, inner, fmt="%.3f", fontsize=8, colors=[INK])
        triangle = _on_page(np.array([[0, 0], [1, 0], [0, 1], [0, 0]], float))
        axes.plot(*triangle.T, color=INK, linewidth=0.9)
        middle = triangle[:3].mean(axis=0)
        for corner, name in zip(triangle[:3], corners, strict=True):
            away = 14 * (corner - middle) / np.linalg.norm(corner - middle)
            side = "center" if abs(away[0]) < 5 else "right" if away[0] < 0 else "left"
            axes.plot(*corner, "o", color=INK, markersize=5)
            axes.annotate(
                name,
                corner,
                away,
                textcoords="offset points",
                va="bottom" if away[1] > 0 else "top",
                ha=side,
            )
        axes.plot(*middle, "+", color=INK, markersize=9)
        axes.annotate(
            "uniform", middle, (6, 5), textcoords="offset points", fontsize=8, color=INK
        )
        if len(data.get("walk") or []):
            walk = _on_page(np.asarray(data["walk"], float))
            axes.plot(*walk.T, color=PAPER, linewidth=3.6, alpha=0.7)
            axes.plot(
                *walk.T, color=SERIES[1], linewidth=1.8, marker="o", markersize=2.5
            )
            axes.plot(
                *walk[-1],
                "*",
                color=SERIES[1],
                markersize=14,
                markeredgecolor=PAPER,
                markeredgewidth=0.8,
            )
        return render(figure, f"plane-{label}")


def gains(rows: Sequence[tuple[str, float | None]], name: str = "gains") -> str:
    """How far a method is above a reference, one bar a target.

    Args:
      rows: (target, difference of scores or None), drawn from top to bottom.
      name: goes before the ids of the drawing; one of its own for each on a page.
    """
    known = [(target, gain) for target, gain in rows if gain is not None][::-1]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.0, 0.9 + 0.34 * max(len(known), 1))
        places = np.arange(len(known))
        values = np.array([gain for _, gain in known])
        axes.barh(
            places,
            values,
            height=0.55,
            alpha=0.85,
            color=[ACCENT if gain >= 0 else SERIES[1] for gain in values],
        )
        for place, gain in zip(places, values, strict=True):
            axes.annotate(
                f"{gain:+.3f}".replace("-", "\N{MINUS SIGN}"),
                (gain, place),
                (4 if gain >= 0 else -4, 0),
                textcoords="offset points",
                va="center",
                ha="left" if gain >= 0 else "right",
                fontsize=9,
                color=INK,
            )
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_yticks(places, [target for target, _ in known])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        low, high = values.min(initial=0.0), values.max(initial=0.0)
        room = 0.2 * max(high - low, 1e-3)
        axes.set_xlim(low - 2 * room * (low < 0), high + room)
        axes.set_xlabel("difference of scores")
        return render(figure, name)


def _paths(means: Any) -> np.ndarray:
    paths = np.asarray(means, float)
    return paths.mean(axis=1) if paths.ndim == 3 else paths


def _on_page(points: np.ndarray) -> np.ndarray:
    u, v = points.T
    return np.stack([u + 0.5 * v, 0.5 * math.sqrt(3) * v], axis=-1)


def _with_alpha(color: str, alpha: float) -> tuple[float, float, float, float]:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, alpha


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _trim_outliers(axes: Axes, values: np.ndarray, best: np.ndarray) -> None:
    """Ends the axis at the bulk of the candidates when a few are far above it."""
    low, high = float(np.nanmin(best)), float(values.max())
    bulk = float(np.quantile(values, 0.8))
    if high - low > 2.5 * (bulk - low) > 0:
        top = bulk + 0.6 * (bulk - low)
        axes.set_ylim(low - 0.08 * (top - low), top)
        hidden = int((values > top).sum())
        axes.annotate(
            f"{hidden} higher, not shown",
            (0.99, 0.97),
            fontsize=8,
            xycoords="axes fraction",
            va="top",
            ha="right",
            color=MUTED,
        )
