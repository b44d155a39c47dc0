"""How far two merged models are from each other, tensor by tensor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

DIFFERENT = 1e-6
"""Entries further apart than this differ by more than the order of a sum."""


class Model(Mapping[str, np.ndarray]):
    """The tensors of a folder, each read when it is asked for."""

    def __init__(self, folder: Path):
        """Reads the names in all safetensors files below the folder."""
        self._files = {}
        for file in sorted(folder.rglob("*.safetensors")):
            opened = safe_open(str(file), framework="numpy")
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, name):
        """A tensor."""
        return self._files[name].get_tensor(name)

    def __iter__(self):
        """The names."""
        return iter(self._files)

    def __len__(self):
        """How many there are."""
        return len(self._files)


def distance(one: Path, other: Path, base: Path | None = None) -> dict[str, Any]:
    """The largest difference between two models in float32.

    Args:
      one: folder of a model.
      other: folder of another.
      base: tensors that `one` has from this model unchanged are counted and no more.

    Returns:
      max_abs: over the tensors compared; where: the tensor it is in; different: share
      of entries more than 1e-6 apart; tensors: how many were compared; at_base: how
      many were not, for they are the base's; only_in_one: names that the other lacks.
    """
    first, second = Model(one), Model(other)
    found = {"max_abs": 0.0, "where": ""}
    entries = different = at_base = 0
    start = Model(base) if base else {}
    both = sorted(set(first) & set(second))
    for name in both:
        if name in start and np.array_equal(first[name], start[name]):
            at_base += 1
            continue
        apart = np.abs(first[name].astype(np.float32) - second[name])
        entries += apart.size
        different += int(np.count_nonzero(~(apart <= DIFFERENT)))
        # A NaN is the largest there is.
        most = float(apart.max())
        if most > found["max_abs"] or np.isnan(most):
            found = {"max_abs": most, "where": name}
    return {
        **found,
        "different": different / max(entries, 1),
        "tensors": len(both) - at_base,
        "at_base": at_base,
        "only_in_one": sorted(set(first) ^ set(second)),
    }


def moments(
    merged: Mapping[str, Path], base: Path, experts: Sequence[Path], weight: float
) -> dict[str, dict[str, float]]:
    """Mean and spread of random merges, beside the exact sum of task vectors.

    With d = merged - base and e = weight * sum_k (expert_k - base), over all entries.

    Args:
      merged: label -> folder.
      base: folder of the base.
      experts: folders of the experts.
      weight: of every expert.

    Returns:
      label -> mean of d; std of d; both over the std of e; and slope, <d, e> / <e, e>:
      the share of e that is left on average. 'exact' is e itself.
    """
    start, models = Model(base), [Model(folder) for folder in experts]
    results = {label: Model(folder) for label, folder in merged.items()}
    sums = {label: np.zeros(4) for label in (*merged, "exact")}
    for name, theta in start.items():
        exact = weight * sum(m[name].astype(np.float64) - theta for m in models)
        deltas = {
            label: m[name] - theta.astype(np.float64) for label, m in results.items()
        }
        for label, d in {**deltas, "exact": exact}.items():
            sums[label] += [d.size, d.sum(), np.vdot(d, d), np.vdot(d, exact)]
    _, std = spread(sums["exact"])
    square = sums["exact"][2]
    found = {}
    for label, own_sums in sums.items():
        mean, own = spread(own_sums)
        found[label] = {
            "mean": mean,
            "std": own,
            "mean_over_exact_std": mean / std,
            "std_over_exact_std": own / std,
            "slope": float(own_sums[3] / square),
        }
    return found


def spread(sums: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation from (n, sum, sum of squares, ...)."""
    mean = sums[1] / sums[0]
    return float(mean), float(np.sqrt(max(sums[2] / sums[0] - mean**2, 0)))
