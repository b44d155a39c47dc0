"""The shared second half of task-vector methods: election, sum, and scale."""

import functools

import jax
import jax.numpy as jnp

from fusion_jax.merging.form import Block

ELECTIONS = ("none", "weighted", "unweighted")
AGGREGATES = ("mean", "sum")

_UNROLLED = 32


def combine(
    deltas: jax.Array,
    coefficients: jax.Array,
    *,
    elect: str,
    aggregate: str,
    zero_sign: jax.Array | float = 1.0,
) -> jax.Array:
    """One task vector of K, after the experts were sparsified.

    s = sign(sum_k w_k d_k) with w = c ('weighted') or 1 ('unweighted'); an exact zero
    takes `zero_sign`; a_k = [d_k s > 0], or 1 without election.
    'sum': sum_k c_k a_k d_k. 'mean': that over sum_k c_k a_k, 0 where nobody agrees.

    Args:
      deltas: [K, ...].
      coefficients: [K], not negative for 'mean'.
      elect: of `ELECTIONS`.
      aggregate: of `AGGREGATES`.
      zero_sign: of entries whose elected sum is exactly zero.

    Returns:
      [...].

    Raises:
      ValueError: an unknown election or aggregate.
    """
    if elect not in ELECTIONS:
        raise ValueError(f"elect: '{elect}' is not one of {', '.join(ELECTIONS)}")
    if aggregate not in AGGREGATES:
        raise ValueError(
            f"aggregate: '{aggregate}' is not one of {', '.join(AGGREGATES)}"
        )
    weights = coefficients.reshape(-1, *[1] * (deltas.ndim - 1))
    if elect == "none":
        agree = jnp.ones(deltas.shape, bool)
    else:
        voted = total(weights * deltas if elect == "weighted" else deltas)
        sign = jnp.where(voted == 0, zero_sign, jnp.sign(voted))
        agree = deltas * sign > 0
    summed = total(jnp.where(agree, weights * deltas, 0))
    if aggregate == "sum":
        return summed
    share = total(jnp.where(agree, weights, 0))
    return jnp.where(share == 0, 0, summed / jnp.where(share == 0, 1, share))


def total(values: jax.Array) -> jax.Array:
    """sum_k x_k: [K, ...] -> [...].

    K reads that XLA fuses with what comes before and after into one pass. A reduction
    over a leading axis, or the equal matrix product with a side of K, is not fused and
    ten times slower on a CPU.
    """
    if len(values) <= _UNROLLED:
        return functools.reduce(jnp.add, [values[k] for k in range(len(values))])
    return jnp.sum(values, axis=0)


def contract(row: jax.Array, experts: jax.Array) -> jax.Array:
    """sum_k row_k x_k: [K], [K, ...] -> [...]."""
    if len(experts) <= _UNROLLED:
        return total(row.reshape(-1, *[1] * (experts.ndim - 1)) * experts)
    # Highest precision: the default of a TPU rounds the operands to bfloat16, whose
    # 8 bits hide the small steps of a search.
    return jnp.einsum("k,k...->...", row, experts, precision="highest")


def moved(block: Block, delta: jax.Array, scale: jax.Array | float) -> jax.Array:
    """theta_0 + scale * delta."""
    assert block.base is not None
    return block.base + scale * delta


def column(value: jax.Array | float, block: Block) -> jax.Array:
    """A number or [K], shaped to go with the block's [K, ...]."""
    return jnp.reshape(jnp.asarray(value), (-1, *[1] * (block.experts.ndim - 1)))
