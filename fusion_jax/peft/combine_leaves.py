"""Ways to merge leaves of modules, one leaf at a time: sums, and merges of changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion_jax.merging.table import MERGES
from fusion_jax.types import Key

Leaves = Sequence[np.ndarray]
"""K leaves of one name and shape."""

# A layer is merged by itself, and a vector of n entries is sparsified like a matrix.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "ties": {"trim_scope": "tensor"},
    "dare": {"exempt_vectors": False},
    "dare_ties": {"exempt_vectors": False},
}


def linear(leaves: Leaves, weights: Sequence[float], neutral: float) -> np.ndarray:
    """The sum of changes, n + sum_k w_k (leaf_k - n); at n a leaf changes nothing.

    n is 1 for a scale of (IA)^3 and 0 else. So weights that sum to 1 give the weighted
    sum of the leaves; [1, 1] adds two changes instead of doubling every activation.

    Args:
      leaves: K arrays [...].
      weights: K numbers.
      neutral: n.

    Returns:
      [...] float64.
    """
    total = sum(
        weight * (leaf.astype(np.float64) - neutral)
        for weight, leaf in zip(weights, leaves, strict=True)
    )
    return np.asarray(neutral + total)


def weighted_sum(
    leaves: Leaves, weights: Sequence[float], neutral: float
) -> np.ndarray:
    """sum_k w_k leaf_k, the rule of torch peft for (IA)^3.

    [1, 1] doubles what the host computes; `linear` is the sum of the changes.

    Args:
      leaves: see `linear`.
      weights: see `linear`.
      neutral: not used.

    Returns:
      [...] float64.
    """
    del neutral
    return linear(leaves, weights, 0.0)


def merged_changes(
    method: str,
    leaves: Leaves,
    weights: Sequence[float],
    neutral: float,
    *,
    key: Key | None = None,
    **options: Any,
) -> np.ndarray:
    """A merge of `MERGES` on the changes leaf_k - n of one leaf.

    Args:
      method: a merge that needs a base: ties, dare, ...
      leaves: K arrays [...].
      weights: its coefficients.
      neutral: n, see `linear`: what stands for the base.
      key: of the masks of this leaf, where it draws any.
      **options: of the merge. TIES trims each leaf by itself.

    Returns:
      [...] float32.
    """
    stack = {"leaf": jnp.stack([jnp.asarray(x, jnp.float32) for x in leaves])}
    merged = MERGES[method].function(
        stack,
        jnp.asarray(weights, jnp.float32),
        base={"leaf": jnp.full_like(stack["leaf"][0], neutral)},
        **({"key": key} if "key" in MERGES[method].needs else {}),
        **_FIXED.get(method, {}),
        **options,
    )
    return np.asarray(merged["leaf"])
