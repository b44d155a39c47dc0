"""Compacter: adapters whose kernels are sums of Kronecker products with one rule."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.peft.activations import ACTIVATIONS
from fusion_jax.peft.bottleneck import activation_of, hook_of, widths
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.leaves import at, normal, product, uniform
from fusion_jax.trees import unflatten
from fusion_jax.types import Around, Key, Params

RULE = "compacter/rule"
ACROSS = RULE
OWNS = rf"{RULE}|.*/compacter/(down|up)/(left|right|bias)"


def init(config: PeftConfig, host: Params, key: Key) -> Params:
    """The factors of every bottleneck, its biases, and the rule that all share.

    `init` of the config: default: rule N(0, 1e-8), 1e-4 standard deviation, factors
    xavier uniform with gain sqrt 2 (the authors' code); xavier_normal: factors xavier
    normal with gain 1 (what AdapterHub's code does whatever it is told); zero_up: as
    default and the right factors of 'up' 0, which alone changes nothing at the start.

    Args:
      config: of kind compacter.
      host: tree of arrays or shapes.
      key: each leaf has a stream of its own.

    Returns:
      Tree of the module's leaves, float32.

    Raises:
      ValueError: n does not divide a width; all of them are listed.
    """
    n, rank = config.phm_dim, config.phm_rank
    sizes = widths(config, host)
    wrong = [f"{path}: {d} and {m}" for path, (d, m) in sizes.items() if d % n or m % n]
    if wrong:
        raise ValueError(
            f"compacter: phm_dim = {n} does not divide the widths of "
            f"{'; '.join(wrong)}: change phm_dim, reduction_factor or bottleneck"
        )
    leaves: dict[str, Any] = {RULE: normal(key, RULE, (n, n, n), 1e-4)}
    for path, (width, inner) in sizes.items():
        for direction, shape in (("down", (width, inner)), ("up", (inner, width))):
            name = f"{path}/compacter/{direction}"
            left, right = (n, shape[0] // n, rank), (n, rank, shape[1] // n)
            leaves[f"{name}/left"] = _factor(config, key, f"{name}/left", left)
            leaves[f"{name}/right"] = _factor(config, key, f"{name}/right", right)
            leaves[f"{name}/bias"] = jnp.zeros(shape[1], jnp.float32)
    return unflatten(leaves)


def kernel_of(own: Mapping[str, Any], rule: jax.Array) -> jax.Array:
    """H = sum_i kron(A_i, s_i t_i).

    Args:
      own: 'left' s [n, in/n, rank], 'right' t [n, rank, out/n].
      rule: A [n, n, n], the first axis over i.

    Returns:
      [in, out].
    """
    n = len(rule)
    blocks = jnp.einsum("ipq,iur,irv->puqv", rule, own["left"], own["right"])
    return blocks.reshape(n * blocks.shape[1], n * blocks.shape[3])


def around(
    config: PeftConfig, params: Params, dropout_key: Key | None = None
) -> Around:
    """The hook: y = x H + b down and up, with the activation between.

    Reference: Karimi Mahabadi et al. 2021, arXiv 2106.04647 (an adapter with shared
    parameters).
    """
    del dropout_key
    activation = ACTIVATIONS[activation_of(config)]
    rule = at(params, RULE)

    def linear(own: Mapping[str, Any], x: jax.Array) -> jax.Array:
        return product(x, kernel_of(own, rule)) + own["bias"].astype(x.dtype)

    def inner(own: Mapping[str, Any], x: jax.Array) -> jax.Array:
        return linear(own["up"], activation(linear(own["down"], x)))

    return hook_of(config, params, inner)


def _factor(
    config: PeftConfig, key: Key, name: str, shape: tuple[int, int, int]
) -> jax.Array:
    if config.init == "zero_up" and name.endswith("/up/right"):
        return jnp.zeros(shape, jnp.float32)
    fans = shape[1] + shape[2]
    if config.init == "xavier_normal":
        return normal(key, name, shape, math.sqrt(2 / fans))
    return uniform(key, name, shape, math.sqrt(2) * math.sqrt(6 / fans))
