"""Tasks as the parameters of small modules that were trained on them.

An adapter, a LoRA pair, a prefix: a tree of few leaves, which flattened is a vector of
the task. All modules of a study start from one initialisation, or their coordinates
mean nothing together.
"""

from collections.abc import Mapping

import numpy as np

from fusion_jax import trees
from fusion_jax.transfer.measure import Measure
from fusion_jax.transfer.term_divergences import cosine, euclidean
from fusion_jax.types import Params


def module_vectors(
    modules: Mapping[str, Params], *, base: Params | None = None
) -> np.ndarray:
    """Flattened modules [N, P] float32, leaves in the order of their names.

    Args:
      modules: name of the task -> its module, trees of one structure.
      base: what all started from, which is taken off; None = nothing is.

    Returns:
      What measures that read 'module' take.

    Raises:
      ValueError: leaves differ between modules, or are not finite, or a module is all
        zeros (its cosine to others is no number): all of them are named.
    """
    if not modules:
        raise ValueError("no module is given; give one a task")
    leaves = {name: trees.flatten(tree) for name, tree in modules.items()}
    first, wanted = next(iter(leaves.items()))
    start = {} if base is None else trees.flatten(base)
    shapes = {leaf: np.shape(x) for leaf, x in wanted.items()}
    faults, rows = [], []
    if base is not None and {leaf: np.shape(x) for leaf, x in start.items()} != shapes:
        faults.append("base: leaves or shapes are not those of the modules")
        start = {}
    for name, found in leaves.items():
        own = {leaf: np.shape(x) for leaf, x in found.items()}
        if own != shapes:
            other = sorted(
                leaf for leaf in {*own, *shapes} if own.get(leaf) != shapes.get(leaf)
            )
            faults.append(
                f"{name}: {', '.join(other[:4])} differ{'s' * (len(other) == 1)} from "
                f"{first}'s, {len(other)} leaves in all"
            )
            continue
        row = np.concatenate(
            [
                np.ravel(np.asarray(found[leaf], np.float32) - _start(start, leaf))
                for leaf in sorted(shapes)
            ]
        )
        if not np.isfinite(row).all():
            faults.append(
                f"{name}: {int((~np.isfinite(row)).sum())} values are not finite"
            )
        elif not row.any():
            faults.append(f"{name}: all values are zero; the module was not trained")
        rows.append(row)
    if faults:
        raise ValueError("modules cannot be compared:\n  " + "\n  ".join(faults))
    return np.stack(rows)


def _start(start: Mapping[str, np.ndarray], leaf: str) -> np.ndarray | float:
    """A leaf of the common start, or zero."""
    return np.asarray(start[leaf], np.float32) if leaf in start else 0.0


_ZHOU = "Zhou et al. 2022, arXiv:2210.11705"
_PROMISES = frozenset({"zero", "positive"})
RECORDS: dict[str, Measure] = {
    "module_cosine": Measure(cosine, "module", True, _PROMISES, _ZHOU),
    "module_euclidean": Measure(euclidean, "module", True, _PROMISES, _ZHOU),
}
