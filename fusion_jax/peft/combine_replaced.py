"""Leaves of modules that stand in the place of the host's own: heads, biases, norms."""

from collections.abc import Mapping, Sequence

import numpy as np

from fusion_jax import trees
from fusion_jax.types import Params

# Weights are float32 sums of what people type.
_ONE = 1e-6


def merged_replaced(
    modules: Sequence[Mapping[str, np.ndarray]],
    weights: Sequence[float],
    host: Params | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Moves the host's: host + sum_k w_k (leaf_k - host), of modules with the leaf.

    Without the host it is known only where those weights sum to 1.

    Args:
      modules: K modules' leaves with names of the host, by name.
      weights: K numbers.
      host: the host's parameters, if at hand.

    Returns:
      (leaves in the dtype of the first module that has them, faults).
    """
    known = trees.flatten(host) if host is not None else {}
    merged, faults = {}, []
    for name in dict.fromkeys(name for leaves in modules for name in leaves):
        have = [
            (leaves[name], weight)
            for leaves, weight in zip(modules, weights, strict=True)
            if name in leaves
        ]
        shapes = sorted({np.shape(leaf) for leaf, _ in have})
        total = sum(weight for _, weight in have)
        exact = abs(total - 1.0) <= _ONE
        if len(shapes) > 1:
            faults.append(
                f"{name}: shapes {' and '.join(map(str, shapes))}; leave it out, or "
                "merge modules with heads for one task"
            )
        elif not exact and name not in known:
            faults.append(
                f"{name} stands for the host's own leaf, and the weights of the "
                f"modules that have it sum to {total:g}: give the host, weights that "
                "sum to 1, or leave it out"
            )
        elif not exact and np.shape(known[name]) != shapes[0]:
            faults.append(
                f"{name}: shape {shapes[0]}, in the host {np.shape(known[name])}"
            )
        else:
            change = sum(weight * np.asarray(leaf, np.float64) for leaf, weight in have)
            if not exact:
                change = change + (1.0 - total) * np.asarray(known[name], np.float64)
            merged[name] = np.asarray(change).astype(have[0][0].dtype)
    return merged, faults
