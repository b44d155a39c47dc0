"""Activations inside bottlenecks, by the names that adapter configs use."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""name -> function; gelu_new is the tanh form."""
