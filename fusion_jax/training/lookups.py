"""Embedding tables that a model reads by lookups alone, and gradients without them.

The gradient of a table is zero but for the rows that were looked up. Written out whole
for every example it is much of what a small encoder with a large vocabulary costs (a
third of the time of MiniLM's Fisher); from the gradient at the lookup's output it is a
few rows.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.trees import flatten, unflatten
from fusion_jax.types import Batch, Outputs, Params

Rows = dict[str, jax.Array]
"""Leaf of a table -> something for each place of the lookup, such as [B, T, D]."""


def lookups(
    apply: Callable[..., Outputs], params: Params, batch: Batch
) -> dict[str, jax.ShapeDtypeStruct]:
    """The tables that one lookup of the forward pass reads, and nothing else.

    A table that is read twice, or otherwise (an output layer tied to it), is left out,
    and so are all where `apply` has no hook `around`. Nothing is computed.

    Returns:
      leaf -> shape and dtype of what is looked up, [..., D].
    """
    if "around" not in inspect.signature(apply).parameters:
        return {}
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    twice: set[str] = set()

    def around(name: str, layer: Callable[..., Any], x: jax.Array) -> jax.Array:
        y = layer(x)
        if _is_ids(x):
            twice.update({_leaf(name)} & shapes.keys())
            shapes[_leaf(name)] = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return y

    jax.eval_shape(lambda params: apply(params, batch, around=around), params)
    once = {leaf: shape for leaf, shape in shapes.items() if leaf not in twice}

    def without(params: Params, rows: Rows) -> Outputs:
        def around(name: str, layer: Callable[..., Any], x: jax.Array) -> jax.Array:
            return rows[_leaf(name)] if _leaf(name) in rows else layer(x)

        return apply(params, batch, around=around)

    # With the lookups' outputs given, who still reads the table?
    program = jax.make_jaxpr(without)(params, once).jaxpr
    read = {id(x) for equation in program.eqns for x in equation.invars}
    read |= {id(x) for x in program.outvars}
    names = jax.tree.leaves(unflatten({name: name for name in flatten(params)}))
    inputs = dict(zip(names, program.invars, strict=False))
    return {leaf: x for leaf, x in once.items() if id(inputs[leaf]) not in read}


def moved_by(
    apply: Callable[..., Outputs], params: Params, batch: Batch, moves: Rows
) -> tuple[Outputs, Rows]:
    """The forward pass with something added to what is looked up, and the ids.

    The gradient by a move is the gradient at the lookup's output.
    """
    ids: Rows = {}
    if not moves:
        return apply(params, batch), ids

    def around(name: str, layer: Callable[..., Any], x: jax.Array) -> jax.Array:
        y = layer(x)
        if _leaf(name) not in moves:
            return y
        ids[_leaf(name)] = x
        return y + moves[_leaf(name)]

    outputs = apply(params, batch, around=around)
    return outputs, ids


def squared_rows(ids: jax.Array, gradient: jax.Array) -> jax.Array:
    """The squared gradient of a table, said once for each row of it that occurs.

    Places of one id are one row of the table: their gradients are summed before they
    are squared. The square stands at the first of them, the others have 0.

    Args:
      ids: [...].
      gradient: at the lookup's output, [..., D].

    Returns:
      [n, D] float32, n the number of places.
    """
    ids = ids.reshape(-1)
    rows = gradient.reshape(len(ids), -1).astype(jnp.float32)
    same = ids[:, None] == ids
    first = jnp.argmax(same, axis=1) == jnp.arange(len(ids))
    total = jnp.matmul(same.astype(rows.dtype), rows, precision="highest")
    return jnp.where(first[:, None], jnp.square(total), 0)


def add_rows(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Adds rows [n, D] to those of a table that n ids name; others are dropped."""
    return table.at[ids.reshape(-1)].add(rows, mode="drop")


def _is_ids(x: jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.integer)


def _leaf(name: str) -> str:
    return f"{name}/embedding"
