"""Bottleneck adapters: A(h) = h + f(h w_down + b_down) w_up + b_up."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.peft.activations import ACTIVATIONS
from fusion_jax.peft.bottleneck import activation_of, hook_of, widths
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.leaves import kaiming_bound, normal, product, truncated, uniform
from fusion_jax.trees import unflatten
from fusion_jax.types import Around, Key, Params

OWNS = r".*/adapter/(down|up)/(kernel|bias)"
STARTS = {"houlsby": "truncated", "pfeiffer": "normal", "parallel": "zero_up"}
"""place -> what 'default' means there."""


def init(config: PeftConfig, host: Params, key: Key) -> Params:
    """Kernels of every bottleneck, and biases of 0.

    `init` of the config: truncated N(0, 1e-6) cut at two standard deviations, 1e-3
    each (Houlsby's); normal N(0, 0.02^2) (AdapterHub's); zero_up: down
    U(+-1/sqrt(d)), up 0, which alone changes nothing at the start; default: by the
    place, see `STARTS`.

    Args:
      config: of kind adapter.
      host: tree of arrays or shapes.
      key: each leaf has a stream of its own.

    Returns:
      Tree of the module's leaves, float32.
    """
    start = STARTS[config.place] if config.init == "default" else config.init
    leaves: dict[str, Any] = {}
    for path, (width, inner) in widths(config, host).items():
        for direction, shape in (("down", (width, inner)), ("up", (inner, width))):
            name = f"{path}/adapter/{direction}"
            leaves[f"{name}/kernel"] = _kernel(start, key, name, shape)
            leaves[f"{name}/bias"] = jnp.zeros(shape[1], jnp.float32)
    return unflatten(leaves)


def around(
    config: PeftConfig, params: Params, dropout_key: Key | None = None
) -> Around:
    """The hook: see `bottleneck.hook_of` for the places.

    The host's dropout of a layer's output comes after the adapter.

    Reference: Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021, arXiv
    2005.00247; parallel: He et al. 2022, arXiv 2110.04366 (sequential or parallel,
    addition).
    """
    del dropout_key
    activation = ACTIVATIONS[activation_of(config)]

    def inner(own: Mapping[str, Any], x: jax.Array) -> jax.Array:
        return _linear(own["up"], activation(_linear(own["down"], x)))

    return hook_of(config, params, inner)


def _linear(own: Mapping[str, Any], x: jax.Array) -> jax.Array:
    return product(x, own["kernel"]) + own["bias"].astype(x.dtype)


def _kernel(start: str, key: Key, name: str, shape: tuple[int, int]) -> jax.Array:
    name = f"{name}/kernel"
    if start == "truncated":
        return truncated(key, name, shape, 1e-3)
    if start == "normal":
        return normal(key, name, shape, 0.02)
    if name.endswith("/up/kernel"):
        return jnp.zeros(shape, jnp.float32)
    return uniform(key, name, shape, kaiming_bound(shape[0]))
