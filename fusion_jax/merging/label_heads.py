"""Heads of experts that share a space of labels, of which each has trained some."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fusion_jax import trees
from fusion_jax.types import Params, ParamStack

MergeSubset = Callable[[ParamStack, jax.Array, tuple[int, ...]], Params]
"""(tree of [k, ...], coefficients [k], the k experts' indices) -> tree of [...]."""


def merge_label_columns(
    merge: MergeSubset,
    heads: ParamStack,
    coefficients: jax.Array | np.ndarray,
    owners: np.ndarray,
) -> Params:
    """Merges each label's column from the experts that have trained it.

    head[..., j] = merge(heads of {k: owners[k, j]}, their c)[..., j]

    A column that an expert has never trained is noise of its initialisation, or was
    pushed down as a label that never occurs: it has no part in the merge. Labels that
    nobody has come from all experts. The merge is called once for each distinct set of
    owners, on whole heads, and the columns of that set are taken from the result.

    Args:
      merge: `(tree of [k, ...], coefficients [k], indices) -> tree of [...]`; the
        indices, ascending, choose statistics of the same experts. Coefficients come
        as given, not as shares of the subset: use a merge that only their ratios
        concern, such as `regmean` or `weighted_average` with normalize=True, so that
        the column of a single owner is that owner's.
      heads: tree of [K, ..., C]; a kernel is [K, in, C], a bias [K, C].
      coefficients: [K]; may be traced.
      owners: [K, C] bool, not traced; see `owned_labels`.

    Returns:
      Tree of [..., C], dtypes of what `merge` returns.

    Raises:
      ValueError: owners and heads do not fit; the coefficients of the owners of a label
        sum to zero; the merge returns other leaves or shapes. All are named at once.

    Reference: the code released with Jin et al. 2023, arXiv:2212.09849, averages each
    label over the models that have it.
    """
    owners = np.asarray(owners)
    leaves = trees.flatten(heads)
    _check(leaves, jnp.shape(coefficients), owners)
    # Nobody's labels are everybody's.
    chosen = np.where(owners.any(axis=0), owners, True)
    sets, which = np.unique(chosen.T, axis=0, return_inverse=True)
    which = which.reshape(-1)
    subsets = [tuple(int(k) for k in np.flatnonzero(members)) for members in sets]
    _check_sums(coefficients, subsets, which)
    parts: dict[str, list[jax.Array]] = {name: [] for name in leaves}
    for number, subset in enumerate(subsets):
        index = np.asarray(subset)
        subtree = trees.map_with_names(lambda _, x, i=index: jnp.asarray(x)[i], heads)
        merged = trees.flatten(merge(subtree, jnp.asarray(coefficients)[index], subset))
        _check_merged(leaves, merged, subset)
        columns = np.flatnonzero(which == number)
        for name in leaves:
            parts[name].append(jnp.asarray(merged[name])[..., columns])
    # Where each label's column lies among those of the sets, one set after another.
    places = np.argsort(np.argsort(which, kind="stable"), kind="stable")
    return trees.unflatten(
        {n: jnp.concatenate(part, axis=-1)[..., places] for n, part in parts.items()}
    )


def owned_labels(counts: np.ndarray, least: int = 1) -> np.ndarray:
    """Which labels an expert has trained.

    Args:
      counts: [K, C], examples of each label in the training data of each expert.
      least: so many make an owner.

    Returns:
      [K, C] bool.
    """
    if least < 1:
        raise ValueError(f"least: {least}; a label without examples has no owner")
    return np.asarray(counts) >= least


def _check(
    leaves: dict[str, jax.Array], row: tuple[int, ...], owners: np.ndarray
) -> None:
    if owners.ndim != 2 or owners.dtype != bool:
        raise ValueError(
            f"owners: {owners.dtype} of shape {owners.shape}; give [K, C] bool, such "
            "as owned_labels(counts)"
        )
    experts, labels = owners.shape
    faults = [] if leaves else ["heads: no leaves"]
    if row != (experts,):
        faults.append(f"coefficients: shape {row}; expected ({experts},)")
    for name, x in leaves.items():
        shape = jnp.shape(x)
        if len(shape) < 2 or shape[0] != experts or shape[-1] != labels:
            faults.append(f"{name}: shape {shape}; expected [{experts}, ..., {labels}]")
    if faults:
        lines = "\n  ".join(sorted(faults)[:40])
        raise ValueError(
            f"owners are of {experts} experts and {labels} labels; heads must have the "
            f"experts first and the labels last:\n  {lines}"
        )


def _check_sums(
    coefficients: jax.Array | np.ndarray,
    subsets: list[tuple[int, ...]],
    which: np.ndarray,
) -> None:
    if isinstance(coefficients, Tracer):
        return
    row = np.asarray(coefficients, np.float64)
    faults = [
        f"labels {np.flatnonzero(which == n)[:12].tolist()}: experts {list(subset)}"
        for n, subset in enumerate(subsets)
        if row[list(subset)].sum() == 0
    ]
    if faults:
        lines = "\n  ".join(faults[:40])
        raise ValueError(
            "coefficients of the experts that own a label sum to zero; give one of "
            f"them a weight, or these labels other owners:\n  {lines}"
        )


def _check_merged(
    leaves: dict[str, jax.Array], merged: dict[str, jax.Array], subset: tuple[int, ...]
) -> None:
    faults = [
        f"{name}: in only one of heads and result"
        for name in leaves.keys() ^ merged.keys()
    ]
    for name in leaves.keys() & merged.keys():
        wanted, found = jnp.shape(leaves[name])[1:], jnp.shape(merged[name])
        if found != wanted:
            faults.append(f"{name}: shape {found}; expected {wanted}")
    if faults:
        lines = "\n  ".join(sorted(faults)[:40])
        raise ValueError(
            f"the merge of experts {list(subset)} must return the tree of heads "
            f"without the axis of experts:\n  {lines}"
        )
