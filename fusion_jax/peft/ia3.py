"""(IA)^3: keys, values and the inner feed-forward activation times trained vectors."""

from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.peft.config import PeftConfig, matches
from fusion_jax.peft.leaves import at
from fusion_jax.peft.places import FAMILIES, chosen, family_of
from fusion_jax.trees import flatten, unflatten
from fusion_jax.types import Around, Key, Params

OWNS = r".*/ia3/(scale|input_scale)"


def init(config: PeftConfig, host: Params, key: Key) -> Params:
    """Ones: 'scale' [out] of a target, 'input_scale' [in] of a feed-forward one.

    Args:
      config: of kind ia3.
      host: tree of arrays or shapes.
      key: not used.

    Returns:
      Tree of the module's leaves, float32.
    """
    del key
    default = None if config.targets else FAMILIES[family_of(host)].ia3
    inner = config.feedforward or (FAMILIES[family_of(host)].feedforward,)
    leaves = {}
    for path, kernel in chosen(config, host, default).items():
        if any(matches(pattern, path) for pattern in inner):
            leaves[f"{path}/ia3/input_scale"] = jnp.ones(kernel.shape[0], jnp.float32)
        else:
            leaves[f"{path}/ia3/scale"] = jnp.ones(kernel.shape[1], jnp.float32)
    return unflatten(leaves)


def around(
    config: PeftConfig, params: Params, dropout_key: Key | None = None
) -> Around:
    """The hook: y = scale * layer(x), or layer(input_scale * x).

    Reference: Liu et al. 2022, arXiv 2205.05638 (sequential, rescaling, K, V, FF).
    """
    del config, dropout_key

    def hook(name: str, call: Any, x: jax.Array) -> jax.Array:
        own = at(params, f"{name}/ia3") or {}
        if "input_scale" in own:
            x = x * own["input_scale"].astype(x.dtype)
        y = call(x)
        if "scale" in own:
            y = y * own["scale"].astype(y.dtype)
        return y

    return hook


def merge(config: PeftConfig, host: Params, params: Params) -> Params:
    """The vectors times columns of kernels and biases, or times rows of kernels."""
    del config
    leaves = dict(flatten(host))

    def multiply(name: str, factor: Any) -> None:
        leaf = jnp.asarray(leaves[name])
        leaves[name] = (leaf.astype(jnp.float32) * factor).astype(leaf.dtype)

    for name, vector in flatten(params).items():
        path, _, last = name.rpartition("/ia3/")
        if last == "input_scale":
            multiply(f"{path}/kernel", jnp.asarray(vector)[:, None])
        elif path:
            multiply(f"{path}/kernel", vector)
            if f"{path}/bias" in leaves:
                multiply(f"{path}/bias", vector)
    return unflatten(leaves)
