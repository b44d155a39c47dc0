"""Parameter trees by leaf name: rules, stacks, partitions, mismatch reports."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.types import Params, ParamStack

Value = TypeVar("Value")
Rules = Sequence[tuple[str, Value]]


class TreeMismatch(ValueError):
    """Trees that must agree in leaf names, shapes and dtypes do not."""


def flatten(tree: Params) -> dict[str, Any]:
    """Leaves by name, 'a/b/c', in the order of the tree."""
    leaves: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                visit(child, f"{prefix}/{name}" if prefix else str(name))
        else:
            leaves[prefix] = node

    visit(tree, "")
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose leaves `flatten` would name so."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        node = tree
        *parents, last = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def map_with_names(function: Callable[[str, Any], Any], tree: Params) -> Params:
    """Applies `function(name, leaf)` to every leaf."""
    return unflatten({name: function(name, x) for name, x in flatten(tree).items()})


def match_rules(
    rules: Rules[Value], names: Iterable[str], *, what: str = "rules"
) -> dict[str, Value]:
    """The value of the first rule whose pattern matches each name in full.

    Args:
      rules: ordered (regular expression, value) pairs.
      names: leaf names.
      what: what the rules are for, for the error message.

    Returns:
      name -> value.

    Raises:
      ValueError: some names match no rule; all of them are listed.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    matched: dict[str, Value] = {}
    uncovered = []
    for name in names:
        for pattern, value in compiled:
            if pattern.fullmatch(name):
                matched[name] = value
                break
        else:
            uncovered.append(name)
    if uncovered:
        raise ValueError(
            f"{what}: no rule covers {_shorten(uncovered)}; add a rule, or a last "
            "rule '.*' for the rest"
        )
    return matched


def partition(tree: Params, pattern: str | Sequence[str]) -> tuple[Params, Params]:
    """Splits a tree into (leaves whose name matches in full, the rest)."""
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    compiled = [re.compile(p) for p in patterns]
    chosen, rest = {}, {}
    for name, leaf in flatten(tree).items():
        hit = any(p.fullmatch(name) for p in compiled)
        (chosen if hit else rest)[name] = leaf
    return unflatten(chosen), unflatten(rest)


def combine(*trees: Params) -> Params:
    """Joins trees with disjoint leaves; the inverse of `partition`.

    Raises:
      TreeMismatch: a leaf occurs in two of them.
    """
    leaves: dict[str, Any] = {}
    for tree in trees:
        flat = flatten(tree)
        twice = sorted(leaves.keys() & flat.keys())
        if twice:
            raise TreeMismatch(f"leaves in more than one tree: {_shorten(twice)}")
        leaves |= flat
    return unflatten(leaves)


def mismatches(
    trees: Sequence[Params], labels: Sequence[str] | None = None
) -> list[str]:
    """Every way in which later trees differ from the first; empty if none does."""
    labels = labels or [f"tree {i}" for i in range(len(trees))]
    first = flatten(trees[0])
    found = []
    for label, tree in zip(labels[1:], trees[1:], strict=True):
        flat = flatten(tree)
        for name in first.keys() - flat.keys():
            found.append(f"{name}: in {labels[0]}, missing in {label}")
        for name in flat.keys() - first.keys():
            found.append(f"{name}: in {label}, missing in {labels[0]}")
        for name in first.keys() & flat.keys():
            a, b = first[name], flat[name]
            if np.shape(a) != np.shape(b):
                found.append(
                    f"{name}: shape {np.shape(a)} in {labels[0]}, "
                    f"{np.shape(b)} in {label}"
                )
            elif _dtype(a) != _dtype(b):
                found.append(
                    f"{name}: dtype {_dtype(a)} in {labels[0]}, {_dtype(b)} in {label}"
                )
    return sorted(found)


def check_same_structure(
    trees: Sequence[Params], labels: Sequence[str] | None = None
) -> None:
    """Raises `TreeMismatch` with every mismatch, if there is one."""
    found = mismatches(trees, labels)
    if found:
        lines = "\n  ".join(found[:40])
        more = f"\n  and {len(found) - 40} more" if len(found) > 40 else ""
        raise TreeMismatch(
            f"{len(found)} leaves differ between models that must have one "
            f"structure:\n  {lines}{more}\nFine-tune all of them from one pretrained "
            "model with one head, or leave the differing leaves out by a rule."
        )


def stack(trees: Sequence[Params], labels: Sequence[str] | None = None) -> ParamStack:
    """Stacks K equal trees: every leaf gains a leading expert axis [K, ...].

    Args:
      trees: K trees of one structure, or one stack is made of nothing.
      labels: names of the trees, for the error message.

    Returns:
      Tree of [K, ...]; dtypes kept.

    Raises:
      TreeMismatch: names, shapes or dtypes differ; every mismatch is listed.
      ValueError: no tree is given.
    """
    if not trees:
        raise ValueError("stack: no trees given; pass at least one")
    check_same_structure(trees, labels)
    flat = [flatten(tree) for tree in trees]
    return unflatten({name: jnp.stack([f[name] for f in flat]) for name in flat[0]})


def unstack(tree: ParamStack) -> list[Params]:
    """The K trees of a stack; the inverse of `stack`."""
    return [jax.tree.map(lambda x, k=k: x[k], tree) for k in range(stack_size(tree))]


def stack_size(tree: ParamStack) -> int:
    """K, the length of the leading expert axis.

    Raises:
      TreeMismatch: leaves disagree about it, or one has no axis.
    """
    sizes = {name: np.shape(x)[:1] for name, x in flatten(tree).items()}
    if not sizes or len(set(sizes.values())) != 1 or () in sizes.values():
        lines = ", ".join(
            f"{name}: {s[0] if s else 'scalar'}" for name, s in list(sizes.items())[:8]
        )
        raise TreeMismatch(
            f"not a stack: leading axes are {lines or 'absent'}; build it with "
            "fusion_jax.stack"
        )
    return next(iter(sizes.values()))[0]


def num_bytes(tree: Params) -> int:
    """Bytes of all leaves."""
    return sum(
        int(np.prod(np.shape(x))) * _dtype(x).itemsize for x in jax.tree.leaves(tree)
    )


def num_params(tree: Params) -> int:
    """Elements of all leaves."""
    return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def _dtype(leaf: Any) -> np.dtype:
    return np.dtype(getattr(leaf, "dtype", None) or np.asarray(leaf).dtype)


def _shorten(names: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
