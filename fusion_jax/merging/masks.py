"""Random numbers of a leaf that do not depend on how the leaf is cut into pieces."""

import math
import zlib

import jax
import jax.numpy as jnp

from fusion_jax.merging.form import Block
from fusion_jax.types import Key

_RUN = 2**14  # elements drawn from one key; part of what a seed means


def leaf_keys(key: Key, name: str, num_experts: int) -> jax.Array:
    """Keys [K] of one leaf: fold_in(fold_in(key, crc32(name)), k)."""
    leaf = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return jax.vmap(lambda k: jax.random.fold_in(leaf, k))(jnp.arange(num_experts))


def uniform(block: Block) -> jax.Array:
    """Uniform numbers in [0, 1), [K, ...] float32, one for each entry of each expert.

    The numbers of an entry depend on the block's keys and its position in the flattened
    leaf alone: every run of 2^14 positions has its own key.

    Raises:
      ValueError: the block has no keys.
    """
    if block.keys is None:
        raise ValueError("this merge draws random masks; pass key=jax.random.key(seed)")
    shape = block.experts.shape[1:]
    size = math.prod(shape)
    start = jnp.asarray(block.start, jnp.int32)
    whole = isinstance(block.start, int) and block.start % _RUN == 0
    runs = -(-size // _RUN) + (not whole)
    numbers = start // _RUN + jnp.arange(runs, dtype=jnp.int32)

    def draw(key: Key) -> jax.Array:
        drawn = jax.vmap(
            lambda run: jax.random.uniform(
                jax.random.fold_in(key, run), (_RUN,), jnp.float32
            )
        )(numbers).reshape(-1)
        if whole:
            return drawn[:size].reshape(shape)
        return jax.lax.dynamic_slice_in_dim(drawn, start % _RUN, size).reshape(shape)

    return jax.vmap(draw)(block.keys)
