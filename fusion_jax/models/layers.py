"""The parts every encoder and head is made of: dense, table, layer norm, dropout."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fusion_jax.types import Key

# The standard deviation with which every Hugging Face encoder starts its weights.
INITIAL_SCALE = 0.02
initialise_kernel: Callable[..., jax.Array] = nn.initializers.normal(INITIAL_SCALE)


class Dense(nn.Module):
    """y = x W + b with W [in, out], computed in `dtype`; no b without `use_bias`."""

    features: int
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", initialise_kernel, shape)
        rows, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        # One matrix of rows: with [B, T, in] the compiler transposes both sides for
        # the kernel's gradient, which makes a layer's backward pass a fifth slower.
        y = rows.reshape(-1, x.shape[-1]) @ kernel
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Table(nn.Module):
    """Rows of an embedding table [rows, D]."""

    rows: int
    features: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Ids [...] -> [..., D] in the dtype of the parameter."""
        shape = (self.rows, self.features)
        return jnp.take(self.param("embedding", initialise_kernel, shape), ids, axis=0)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias, in float32."""

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] of any dtype -> [..., D] of `dtype`."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale + bias).astype(self.dtype)


class Dropout(nn.Module):
    """Zeroes elements with probability `rate` and scales up the rest."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, active: bool) -> jax.Array:
        """Returns x itself where not active."""
        if not active or self.rate == 0.0:
            return x
        # The rate used is exact to 1 / 65536, and so is the scale that goes with it.
        dropped = min(round(self.rate * 65536), 65535)
        bits = random_bits(self.make_rng("dropout"), x.shape)
        scale = jnp.asarray(65536 / (65536 - dropped), x.dtype)
        return jnp.where(bits >= dropped, x * scale, 0)


def random_bits(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint16 of a shape, two from every 32-bit word of the generator.

    `jax.random.bits` at 16 bits draws a whole word for each element and throws half
    of it away; the generator is nearly all that dropout costs on a CPU.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    return halves.reshape(-1)[:size].reshape(shape)
