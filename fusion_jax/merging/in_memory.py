"""Runs a form on whole leaves: the merge as a pure function of trees."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.coefficients import per_leaf
from fusion_jax.merging.form import (
    Block,
    Facts,
    Form,
    Options,
    Rank,
    Select,
    Sum,
    Threshold,
)
from fusion_jax.merging.masks import leaf_keys
from fusion_jax.merging.selection import ranks, threshold
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def run(
    form: Form,
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    options: Options | None = None,
    statistics: Params | None = None,
) -> Params:
    """The merged tree.

    Args:
      form: of the method.
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K].
      base: tree of [...]; give it only to methods that read it.
      key: of methods that draw random masks.
      groups: ordered (regular expression, row of coefficients) rules.
      options: numbers of the method.
      statistics: leaf name -> statistics [K, ...] of that leaf, where there are any.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. Leaves that are not
      floating are those of the first expert.

    Raises:
      ValueError: the coefficients do not fit.
      TreeMismatch: the base has another structure than the experts.
    """
    options = dict(options or {})
    if base is not None:
        first = jax.eval_shape(lambda s: jax.tree.map(lambda x: x[0], s), stack)
        trees.check_same_structure([first, base], ["the experts", "base"])
    rows = per_leaf(stack, coefficients, groups)
    leaves = trees.flatten(stack)
    anchors = trees.flatten(base) if base is not None else {}
    blocks = {
        name: Block(
            experts=x.astype(jnp.float32),
            base=anchors[name].astype(jnp.float32) if name in anchors else None,
            coefficients=rows[name],
            start=0,
            keys=None if key is None else leaf_keys(key, name, len(x)),
            valid=None,
            size=x[0].size,
            shape=x.shape[1:],
            name=name,
            statistics=None if statistics is None else statistics.get(name),
        )
        for name, x in leaves.items()
        if jnp.issubdtype(x.dtype, jnp.floating)
    }
    if form.scope == "model":
        facts = _facts_of_model(form, blocks, options)
    else:
        facts = {name: _facts_of_leaf(form, b, options) for name, b in blocks.items()}

    def merge(name: str, x: jax.Array) -> jax.Array:
        if name not in blocks:
            return x[0]
        return form.apply(blocks[name], facts[name], options).astype(x.dtype)

    return trees.map_with_names(merge, stack)


def require_base(base: Params | None, method: str) -> Params:
    """The base, or a ValueError that names the method."""
    if base is None:
        raise ValueError(f"{method}: needs base=, the pretrained parameters")
    return base


def require_key(key: Key | None, method: str) -> Key:
    """The key, or a ValueError that names the method."""
    if key is None:
        raise ValueError(f"{method}: draws random masks; pass key=jax.random.key(seed)")
    return key


def _facts_of_leaf(form: Form, block: Block, options: Options) -> Facts:
    facts: dict[str, Any] = {}
    for step in form.passes:
        if isinstance(step, Sum):
            facts[step.name] = step.function(block, facts, options)
        elif isinstance(step, Rank):
            values = step.values(block, facts, options)
            facts[step.name] = ranks(values, form.input_axis)
        else:
            values = step.values(block, facts, options)
            counts = step.counts(block.size, facts, options)
            facts[step.name] = threshold(values.reshape(len(values), -1), counts)
    return facts


def _facts_of_model(
    form: Form, blocks: dict[str, Block], options: Options
) -> dict[str, Facts]:
    """Facts of all leaves together; the positions of thresholds leaf by leaf."""
    together: dict[str, Any] = {}
    lasts: dict[str, dict[str, jax.Array]] = {}
    # One order of leaves, whatever order the tree has, decides between equal entries.
    names = sorted(blocks)
    total = sum(blocks[name].size for name in names)

    def gather(function: Callable[[Block, Facts, Options], Any]) -> list[Any]:
        return [
            function(blocks[name], _localised(together, lasts, name), options)
            for name in names
        ]

    for step in form.passes:
        if isinstance(step, Sum):
            together[step.name] = jax.tree.map(
                lambda *parts: sum(parts), *gather(step.function)
            )
            continue
        if isinstance(step, Rank):
            raise TypeError(f"{step.name}: ranks are of a leaf; set scope='leaf'")
        assert isinstance(step, Select)
        values = jnp.concatenate(
            [v.reshape(len(v), -1) for v in gather(step.values)], axis=1
        )
        line = threshold(values, step.counts(total, together, options))
        together[step.name] = line
        start = 0
        lasts[step.name] = {}
        for name in names:
            lasts[step.name][name] = jnp.clip(line.last - start, -1, blocks[name].size)
            start += blocks[name].size
    return {name: _localised(together, lasts, name) for name in blocks}


def _localised(
    together: dict[str, Any], lasts: dict[str, dict[str, jax.Array]], name: str
) -> Facts:
    return {
        fact: Threshold(value.value, lasts[fact][name]) if fact in lasts else value
        for fact, value in together.items()
    }
