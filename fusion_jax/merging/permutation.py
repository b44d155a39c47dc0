"""Which units of one model are those of another: permutations found by weights."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.types import Key, Params

PermutationSpec = Mapping[str, tuple[str | None, ...]]
"""Leaf name -> the name of the permutation of each axis; None for a fixed axis.

Axes with one name are permuted alike: a hidden layer's kernel has it as output axis,
and its bias and the next kernel's input axis have it too. All layers that write to one
residual stream share its name. Inputs and outputs of the model are None, and so are
axes of heads and their entries flattened into one: moving single entries between heads
gives another model.
"""

Permutations = Mapping[str, np.ndarray]
"""Name -> [n], position i takes unit permutation[i]."""

_SWEEPS = 100


def match(
    spec: PermutationSpec, fixed: Params, other: Params, *, key: Key | None = None
) -> dict[str, np.ndarray]:
    """Permutations that bring `other` as near to `fixed` as they can.

    maximise over permutations  <fixed, permute(spec, permutations, other)>, one after
    another, each an assignment problem with the others held; until none gains.

    On the host, in float64, not traceable. A local optimum: the order of the sweeps
    matters, and another key may find a better one.

    Args:
      spec: of every leaf.
      fixed: tree of [...], stays as it is.
      other: tree of [...].
      key: draws the order of permutations in each sweep; that of the spec without one.

    Returns:
      Name -> [n] integers.

    Raises:
      ValueError: the spec does not fit the leaves.
      TreeMismatch: the two models differ in structure.

    Reference: Ainsworth et al. 2023, arXiv:2209.04836, algorithm 1.
    """
    # Not at the top: `import fusion_jax` loads jax and numpy alone.
    from scipy.optimize import linear_sum_assignment

    trees.check_same_structure([fixed, other], ["the fixed model", "the other model"])
    sizes = permutation_sizes(spec, fixed)
    a, b = (
        {name: x.astype(np.float64) for name, x in trees.flatten(on_host(tree)).items()}
        for tree in (fixed, other)
    )
    found = {name: np.arange(size) for name, size in sizes.items()}
    places: dict[str, list[tuple[str, int]]] = {name: [] for name in sizes}
    for leaf, axes in spec.items():
        for axis, name in enumerate(axes):
            if name is not None:
                places[name].append((leaf, axis))
    names = list(sizes)
    for sweep in range(_SWEEPS):
        order = np.arange(len(names))
        if key is not None:
            order = jax.random.permutation(jax.random.fold_in(key, sweep), len(names))
        gained = False
        for name in (names[int(i)] for i in order):
            size = sizes[name]
            likeness = np.zeros((size, size))
            for leaf, axis in places[name]:
                moved = _permute_leaf(b[leaf], spec[leaf], found, skip=axis)
                likeness += _rows(a[leaf], axis) @ _rows(moved, axis).T
            rows, columns = linear_sum_assignment(likeness, maximize=True)
            before = likeness[np.arange(size), found[name]].sum()
            # Relative: rounding of equal assignments must not look like progress.
            least = 1e-12 * np.abs(likeness).max(initial=0) * size
            if likeness[rows, columns].sum() > before + least:
                found[name] = columns
                gained = True
        if not gained:
            break
    return found


def permute(
    spec: PermutationSpec, permutations: Permutations, params: Params
) -> Params:
    """The model with its units in another order.

    Args:
      spec: of every leaf.
      permutations: name -> [n].
      params: tree of [...].

    Returns:
      Tree of [...], dtypes kept.

    Raises:
      ValueError: the spec does not fit the leaves, or a permutation is missing.
    """
    missing = sorted(permutation_sizes(spec, params).keys() - permutations.keys())
    if missing:
        raise ValueError(f"permutations: {', '.join(missing)} are missing")

    def visit(name: str, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        for axis, tied in enumerate(spec[name]):
            if tied is not None:
                x = jnp.take(x, jnp.asarray(permutations[tied]), axis=axis)
        return x

    return trees.map_with_names(visit, params)


def on_host(params: Params) -> Params:
    """The same tree in NumPy arrays.

    Raises:
      TypeError: it is traced.
    """
    try:
        return jax.tree.map(np.asarray, params)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            "permutations are found on the host, by assignment problems, for models "
            "that are not traced; call it outside jit, vmap and grad"
        ) from error


def permutation_sizes(spec: PermutationSpec, params: Params) -> dict[str, int]:
    """Name -> length of every permutation of a spec, for this model.

    Raises:
      ValueError: leaves without a line, lines without a leaf, another number of axes,
        or axes of one permutation that differ in length; all of them are listed.
    """
    leaves = trees.flatten(params)
    faults = [f"{n}: not in the spec" for n in leaves.keys() - spec.keys()]
    faults += [f"{n}: no such leaf" for n in spec.keys() - leaves.keys()]
    lengths: dict[str, dict[int, str]] = {}
    for leaf, axes in spec.items():
        if leaf not in leaves:
            continue
        shape = np.shape(leaves[leaf])
        if len(shape) != len(axes):
            faults.append(f"{leaf}: {len(axes)} axes in the spec, shape {shape}")
            continue
        for axis, name in enumerate(axes):
            if name is not None:
                lengths.setdefault(name, {}).setdefault(
                    shape[axis], f"{leaf} axis {axis}"
                )
    for name, places in lengths.items():
        if len(places) > 1:
            listed = ", ".join(f"{n} at {place}" for n, place in places.items())
            faults.append(f"permutation '{name}' of different lengths: {listed}")
    if faults:
        lines = "\n  ".join(sorted(faults)[:40])
        raise ValueError(f"permutation spec:\n  {lines}")
    return {name: next(iter(places)) for name, places in lengths.items()}


def _permute_leaf(
    x: np.ndarray,
    axes: tuple[str | None, ...],
    permutations: Permutations,
    skip: int,
) -> np.ndarray:
    for axis, name in enumerate(axes):
        if name is not None and axis != skip:
            x = np.take(x, permutations[name], axis=axis)
    return x


def _rows(x: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
