"""Leaves of a module: found by path while a pass is traced, and drawn by name."""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.types import Key, Params


def at(tree: Params, path: str) -> Any:
    """The subtree or leaf of a path; None where there is none."""
    node: Any = tree
    for name in path.split("/"):
        if not isinstance(node, Mapping) or name not in node:
            return None
        node = node[name]
    return node


def product(x: jax.Array, *kernels: jax.Array) -> jax.Array:
    """Rows times kernels, x W_1 W_2 ..., from the left, in the dtype of x [..., in]."""
    rows = x.reshape(-1, x.shape[-1])  # As `Dense` does, for the backward pass.
    for kernel in kernels:
        rows = rows @ kernel.astype(x.dtype)
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


def in_front(rows: jax.Array, y: jax.Array) -> jax.Array:
    """Rows [L, D] before the tokens of each example, [B, T, D] -> [B, L + T, D]."""
    shape = (y.shape[0], *rows.shape)
    return jnp.concatenate([jnp.broadcast_to(rows.astype(y.dtype), shape), y], axis=1)


def dropped(x: jax.Array, rate: float, key: Key | None, name: str) -> jax.Array:
    """Input with elements zeroed at a rate, the rest scaled up; none without a key."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(_own(key, f"{name} dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def uniform(key: Key, name: str, shape: tuple[int, ...], bound: float) -> jax.Array:
    """U(-bound, bound) float32 by the name's own stream: no other leaf changes it."""
    return jax.random.uniform(
        _own(key, name), shape, jnp.float32, minval=-bound, maxval=bound
    )


def normal(key: Key, name: str, shape: tuple[int, ...], std: float) -> jax.Array:
    """N(0, std^2) float32, likewise."""
    return std * jax.random.normal(_own(key, name), shape, jnp.float32)


def truncated(key: Key, name: str, shape: tuple[int, ...], std: float) -> jax.Array:
    """N(0, std^2) cut at two std, float32, likewise; what is left is narrower."""
    drawn = jax.random.truncated_normal(_own(key, name), -2, 2, shape, jnp.float32)
    return std * drawn


def kaiming_bound(fan_in: int) -> float:
    """1 / sqrt(in): kaiming uniform with a = sqrt 5, the start of torch's linear."""
    return 1 / math.sqrt(fan_in)


def _own(key: Key, name: str) -> Key:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
