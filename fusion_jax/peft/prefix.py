"""Prefix tuning: trained keys and values before those of the text, in every layer."""

import re
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.peft.config import PeftConfig, length_of, matches
from fusion_jax.peft.leaves import at, in_front, kaiming_bound, normal, uniform
from fusion_jax.peft.places import FAMILIES, family_of, paths_of
from fusion_jax.trees import flatten, unflatten
from fusion_jax.types import Around, Key, Params

ACROSS = r"prefix/[a-z_]+/(embedding|(hidden|output)/(kernel|bias))"
OWNS = rf"{ACROSS}|.*/(key|value)/prefix/rows"
SIDES = ("key", "value")
# No two families give one attention to different groups.
GROUPS = tuple({pair for places in FAMILIES.values() for pair in places.prefix})


def init(config: PeftConfig, host: Params, key: Key) -> Params:
    """Rows [L, D] ~ N(0, 1) of every attention, or the networks that give them.

    With mlp_width one network serves the attentions of a group (all layers of a stack):
    embedding [L, e] ~ N(0, 1) with e the host's width, hidden [e, mid], output
    [layers, 2, mid, D], kernels and biases as torch's linear layers start.

    Args:
      config: of kind prefix.
      host: tree of arrays or shapes.
      key: each leaf has a stream of its own.

    Returns:
      Tree of the module's leaves, float32.

    Raises:
      ValueError: the host has no attention with keys and values of their own, or
        targets that do not fit.
    """
    attentions = _attentions(config, host)
    if not config.mlp_width:
        return unflatten(
            {
                name: normal(key, name, (length_of(config), kernel.shape[1]), 1.0)
                for path in attentions
                for side in SIDES
                for name, kernel in (
                    (f"{path}/{side}/prefix/rows", at(host, f"{path}/{side}/kernel")),
                )
            }
        )
    if config.targets:
        raise ValueError("prefix: mlp_width and targets exclude each other")
    leaves: dict[str, jax.Array] = {}
    for group, pattern in FAMILIES[family_of(host)].prefix:
        layers = [path for path in attentions if re.fullmatch(pattern, path)]
        width, inner = at(host, f"{layers[0]}/key/kernel").shape
        leaves |= _network(config, key, f"prefix/{group}", len(layers), width, inner)
    return unflatten(leaves)


def around(
    config: PeftConfig, params: Params, dropout_key: Key | None = None
) -> Around:
    """The hook: attention(q, [P_k; K], [P_v; V]), rows after the projection.

    The text keeps its positions, or with shift_positions begins after the prefix: so
    does a cache of keys and values move it, by which torch peft gives a prefix.

    Reference: Li and Liang 2021, arXiv 2101.00190 (parallel, concatenation, K and V).
    """
    del dropout_key

    def hook(name: str, call: Any, x: jax.Array) -> jax.Array:
        path, _, side = name.rpartition("/")
        if config.shift_positions and side == "position":
            return call(_shifted(config, at(params, f"{name}/embedding"), x))
        y = call(x)
        if side not in SIDES:
            return y
        rows = at(params, f"{name}/prefix/rows")
        if rows is None:
            rows = _given_rows(params, path, SIDES.index(side))
        return y if rows is None else in_front(rows, y)

    return hook


def flat_rows(params: Params) -> Params:
    """The rows that networks give, [L, D] of every attention: what is kept of them.

    Args:
      params: leaves of a module, perhaps flat already; others than the prefix's stay.
    """
    leaves = {}
    for name, leaf in flatten(params).items():
        if not re.fullmatch(ACROSS, name):
            leaves[name] = leaf
    for group, pattern in GROUPS:
        own = at(params, f"prefix/{group}")
        for number in range(len(own["output"]["kernel"]) if own else 0):
            path = pattern.replace(r"(\d+)", str(number))
            for side in SIDES:
                rows = _given_rows(params, path, SIDES.index(side))
                leaves[f"{path}/{side}/prefix/rows"] = rows
    return unflatten(leaves)


def _shifted(config: PeftConfig, table: jax.Array, places: jax.Array) -> jax.Array:
    """The positions of the text after the prefix."""
    length = length_of(config)
    if places.shape[-1] + length > len(table):
        raise ValueError(
            f"batch has {places.shape[-1]} tokens a row after a prefix of {length}; "
            f"the host has {len(table)} positions: encode with a smaller max_length"
        )
    return places + length


def _attentions(config: PeftConfig, host: Params) -> list[str]:
    patterns = config.targets
    if not patterns:
        family = family_of(host)
        patterns = tuple(pattern for _, pattern in FAMILIES[family].prefix)
        if not patterns:
            raise ValueError(
                f"prefix: {family} computes query, key and value in one product, which "
                "has no place for keys and values alone; choose another kind"
            )
    paths = paths_of(host)
    attentions = [
        path.removesuffix("/key")
        for path in paths
        if path.endswith("/key") and f"{path.removesuffix('/key')}/value" in paths
    ]
    idle = [p for p in patterns if not any(matches(p, path) for path in attentions)]
    if idle:
        raise ValueError(
            f"prefix: no attention matches {', '.join(map(repr, idle))}; the host has "
            f"{', '.join(attentions[:6]) or 'none'}"
        )
    return [path for path in attentions if any(matches(p, path) for p in patterns)]


def _network(
    config: PeftConfig, key: Key, name: str, layers: int, width: int, inner: int
) -> dict[str, jax.Array]:
    middle = config.mlp_width
    first, second = kaiming_bound(width), kaiming_bound(middle)
    shapes = {
        "hidden/kernel": ((width, middle), first),
        "hidden/bias": ((middle,), first),
        "output/kernel": ((layers, 2, middle, inner), second),
        "output/bias": ((layers, 2, inner), second),
    }
    drawn = {
        f"{name}/{leaf}": uniform(key, f"{name}/{leaf}", shape, bound)
        for leaf, (shape, bound) in shapes.items()
    }
    start = f"{name}/embedding"
    return {start: normal(key, start, (length_of(config), width), 1.0), **drawn}


def _given_rows(params: Params, path: str, side: int) -> jax.Array | None:
    """tanh(E W_1 + b_1) W_2 + b_2 of one attention's keys (0) or values (1)."""
    for group, pattern in GROUPS:
        found = re.fullmatch(pattern, path)
        own = at(params, f"prefix/{group}") if found else None
        if found and own is not None:
            number = int(found.group(1))
            middle = own["embedding"] @ own["hidden"]["kernel"] + own["hidden"]["bias"]
            kernel, bias = (own["output"][x][number, side] for x in ("kernel", "bias"))
            return jnp.tanh(middle) @ kernel + bias
    return None
