"""Tasks of a selection as a tree and as heat maps in the order of its leaves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_jax.reports import elements, selection_plots
from fusion_jax.reports.selection_tables import label

Results = Mapping[str, Any]


def maps(results: Results) -> str:
    """Distances and transfer as heat maps in the order of the tree, and the tree."""
    measure = results["order"]
    if measure not in results["distances"]:
        measure = next(iter(results["distances"]))
    names = results["names"]
    distances = np.array(results["distances"][measure])
    tree = selection_plots.tree_of(distances)
    order = selection_plots.leaves_of(tree)
    shown = [names[i] for i in order]
    far = distances[np.ix_(order, order)].copy()
    np.fill_diagonal(far, np.nan)
    parts = [
        elements.figure(
            selection_plots.dendrogram(tree, names, label(measure)),
            f"Tree of {len(names)} tasks by {label(measure)}.",
            f"Average linkage by {label(measure)}.",
            wide=True,
        ),
        elements.figure(
            selection_plots.heat_map(
                far, shown, title=label(measure), name="distances", centred=False
            ),
            f"{label(measure)} of all pairs of {len(names)} tasks.",
            f"{label(measure)} of all pairs; dark is close.",
            wide=True,
        ),
    ]
    gains = _gains(results)
    if np.isfinite(gains).any():
        parts.append(
            elements.figure(
                selection_plots.heat_map(
                    gains[np.ix_(order, order)],
                    shown,
                    title="score minus the target's mean",
                    name="gains",
                    centred=True,
                ),
                "Zero-shot score of each source on each target, minus the mean of the "
                "target's sources.",
                "Zero-shot score minus the mean of the target's sources; blue is "
                "better.",
                wide=True,
            )
        )
    return elements.section("Tasks", *parts)


def _gains(results: Results) -> np.ndarray:
    place = {name: i for i, name in enumerate(results["names"])}
    table = np.full((len(place), len(place)), np.nan)
    for pair in results["pairs"]:
        if pair["zero_shot"] is not None:
            table[place[pair["source"]], place[pair["target"]]] = pair["zero_shot"]
    for column in table.T:
        known = np.isfinite(column)
        if known.any():
            column -= column[known].mean()
    return table
