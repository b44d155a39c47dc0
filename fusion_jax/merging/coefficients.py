"""Coefficients in their three forms, brought to one row a leaf."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.types import Coefficients, ParamStack


def per_leaf(
    stack: ParamStack,
    coefficients: Coefficients,
    groups: trees.Rules[int] | None = None,
) -> dict[str, jax.Array]:
    """The coefficients of every leaf, [K] each, in float32.

    Args:
      stack: tree of [K, ...].
      coefficients: [K] for all leaves, [G, K] with `groups`, or a tree of [K].
      groups: ordered (regular expression, row) rules, needed with [G, K] alone.

    Returns:
      name -> [K] float32.

    Raises:
      ValueError: the form does not fit K, or `groups` is missing or names a row that
        is not there.
      TreeMismatch: a tree of coefficients whose leaves are not those of the stack.
    """
    leaves = trees.flatten(stack)
    num_experts = trees.stack_size(stack)
    if isinstance(coefficients, Mapping):
        rows = trees.flatten(coefficients)
        odd = sorted(rows.keys() ^ leaves.keys())
        if odd:
            raise trees.TreeMismatch(
                f"coefficients: leaves {odd[:12]} are in only one of stack and "
                "coefficients; give one row [K] for each leaf"
            )
        rows = {name: jnp.asarray(row, jnp.float32) for name, row in rows.items()}
    else:
        array = jnp.asarray(coefficients, jnp.float32)
        if array.ndim == 1:
            rows = dict.fromkeys(leaves, array)
        elif array.ndim == 2 and groups is not None:
            index = trees.match_rules(groups, leaves, what="groups")
            beyond = {g for g in index.values() if not 0 <= g < array.shape[0]}
            if beyond:
                raise ValueError(
                    f"groups: rows {sorted(beyond)} are not among the "
                    f"{array.shape[0]} rows of coefficients"
                )
            rows = {name: array[index[name]] for name in leaves}
        else:
            raise ValueError(
                f"coefficients of shape {array.shape}: expected [K], or [G, K] "
                "together with groups=[(regex, row), ...]"
            )
    wrong = {
        name: row.shape for name, row in rows.items() if row.shape != (num_experts,)
    }
    if wrong:
        name, shape = next(iter(wrong.items()))
        raise ValueError(
            f"coefficients: {shape} for leaf '{name}', but the stack holds "
            f"{num_experts} experts; give one number for each expert"
        )
    return rows
