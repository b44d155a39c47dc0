"""Random numbers of a leaf that do not depend on how the leaf is cut into pieces."""

import zlib

import jax
import jax.numpy as jnp

from fusion_jax.merging.form import Block
from fusion_jax.merging.selection import positions
from fusion_jax.types import Key

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def leaf_keys(key: Key, name: str, num_experts: int) -> jax.Array:
    """Keys [K] of one leaf: fold_in(fold_in(key, crc32(name)), k)."""
    leaf = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return jax.vmap(lambda k: jax.random.fold_in(leaf, k))(jnp.arange(num_experts))


def uniform(block: Block) -> jax.Array:
    """Uniform numbers in [0, 1), [K, ...] float32, one for each entry of each expert.

    Those of expert k are `jax.random.uniform(block.keys[k], shape of the leaf)`, of
    which a piece takes its part: the number of an entry depends on the key and its
    position in the flattened leaf alone.

    Raises:
      ValueError: the block has no keys, or keys of another generator than threefry.
    """
    if block.keys is None:
        raise ValueError("this merge draws random masks; pass key=jax.random.key(seed)")
    words = jax.random.key_data(block.keys)
    if words.shape[-1:] != (2,):
        raise ValueError(
            "random masks are of threefry keys; pass key=jax.random.key(seed, "
            "impl='threefry2x32')"
        )
    place = positions(block).astype(jnp.uint32)
    column = (-1, *[1] * place.ndim)
    bits = _threefry(words[:, 0].reshape(column), words[:, 1].reshape(column), place)
    # The 23 bits of a float32 in [1, 2), as jax.random makes it.
    mantissa = (bits >> 9) | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1.0


def _threefry(first: jax.Array, second: jax.Array, count: jax.Array) -> jax.Array:
    """32 random bits of a key of two words at a counter (Salmon et al. 2011).

    The same as jax.random.bits, whose own loop over the rounds is not unrolled on a
    CPU: every round passes through memory there; here all are one loop over entries.
    """
    keys = (first, second, first ^ second ^ jnp.uint32(_PARITY))
    y = count + second
    x = jnp.broadcast_to(first, y.shape)
    for turn in range(5):
        for distance in _ROTATIONS[turn % 2]:
            x = x + y
            y = ((y << distance) | (y >> (32 - distance))) ^ x
        x = x + keys[(turn + 1) % 3]
        y = y + keys[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return x ^ y
