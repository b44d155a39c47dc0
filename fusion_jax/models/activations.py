"""Activations by their Hugging Face names."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

_SQRT_HALF = 0.7071067811865476


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x) with Phi the normal distribution function, by erf.

    `jax.nn.gelu(approximate=False)` goes by erfc, which costs an exponential more.
    Computed in float32, returned in the dtype of x.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * _SQRT_HALF))).astype(x.dtype)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The tanh approximation of `gelu`."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
