"""PCB: parameters compete, within an expert and between experts, for their weight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.merging.combine import column, moved, total
from fusion_jax.merging.form import Block, Facts, Form, Options, Select
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.selection import count
from fusion_jax.types import Coefficients, Key, Params, ParamStack

_CLIPPED = 1e-4  # share of magnitudes that is clipped at either end


def pcb(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    ratio: jax.Array | float = 0.1,
    scale: jax.Array | float = 1.0,
) -> Params:
    """Weighs every entry of every task vector by its competition score.

    b_k = |delta_k| clipped to its 1e-4 and 1 - 1e-4 quantiles
    p_k = exp(K minmax(b_k)^2) tanh(delta_k sum_j delta_j)
    s_k = minmax(max(p_k, q_k)),  q_k: the next after the `ratio` share of largest p_k
    theta = theta_0 + scale * sum_k c_k s_k sign(delta_k) b_k / sum_k c_k s_k

    Quantiles and minmax are over the whole vector of an expert. minmax of a constant
    vector is 0; where no s_k is positive, entries keep the base. Products of deltas do
    not underflow: they are taken of deltas over the largest, M, and tanh(M^2 x) / M^2
    of them, which gives the same s_k. While deltas stay small against 1, where tanh is
    the identity, a multiple of them gives that multiple of the merged task vector;
    larger ones saturate, as in the paper.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative, only
        their ratios count.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      ratio: share of entries that count of each expert, a number or [K]; exactly
        floor(ratio * n) of them where scores differ, and at most n - 2.
      scale: lambda, of the merged task vector.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Du et al. 2024, arXiv:2410.02396.
    """
    del key
    return run(
        pcb_form(),
        stack,
        coefficients,
        base=require_base(base, "pcb"),
        groups=groups,
        options={"ratio": ratio, "scale": scale},
    )


def pcb_form() -> Form:
    """The form of `pcb`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        span = _fact("span", facts, block)
        score = _above(block, facts) / jnp.where(span == 0, 1, span)
        weights = column(block.coefficients, block) * score
        whole = total(weights)
        signed = jnp.sign(block.deltas) * _clipped(block, facts)
        merged = total(weights * signed) / jnp.where(whole == 0, 1, whole)
        return moved(block, jnp.where(whole == 0, 0, merged), options["scale"])

    passes = (
        Select("high", _magnitudes, _end_counts),
        Select("spread", _below_high, _end_counts),
        Select("line", _both_signs, _line_counts),
        Select("span", _over_the_line, _one),
    )
    return Form(apply, passes, scope="model")


def _magnitudes(block: Block, facts: Facts, options: Options) -> jax.Array:
    del facts, options
    return jnp.abs(block.deltas).astype(jnp.float32)


def _end_counts(size: int, facts: Facts, options: Options) -> Any:
    del facts, options
    return count(_CLIPPED, size) + 1


def _below_high(block: Block, facts: Facts, options: Options) -> jax.Array:
    # The smallest is found as the farthest below the high end: a selection has no
    # smallest.
    del options
    high = _fact("high", facts, block)
    return _masked(high - jnp.minimum(jnp.abs(block.deltas), high), block)


def _both_signs(block: Block, facts: Facts, options: Options) -> jax.Array:
    # A selection is of values that are not negative, but the line of an expert that
    # opposes all others is: rows of positive parts, then rows of negative parts.
    del options
    p = _competition(block, facts)
    return _masked(jnp.concatenate([p, -p]), block)


def _line_counts(size: int, facts: Facts, options: Options) -> Any:
    rows = (len(facts["high"].value),)
    counted = count(options["ratio"], size)
    array = jnp if isinstance(counted, jax.Array) else np
    place = array.minimum(
        array.broadcast_to(array.asarray(counted) + 1, rows), size - 1
    )
    return array.concatenate([place, size - place + 1])


def _over_the_line(block: Block, facts: Facts, options: Options) -> jax.Array:
    del options
    return _masked(_above(block, facts), block)


def _one(size: int, facts: Facts, options: Options) -> Any:
    del size, facts, options
    return 1


def _clipped(block: Block, facts: Facts) -> jax.Array:
    """b_k, [K, ...]."""
    high, spread = _fact("high", facts, block), _fact("spread", facts, block)
    return jnp.clip(jnp.abs(block.deltas), high - spread, high)


def _competition(block: Block, facts: Facts) -> jax.Array:
    """p_k times a number that is the same for all entries, [K, ...] float32."""
    high, spread = _fact("high", facts, block), _fact("spread", facts, block)
    share = 1 - (high - _clipped(block, facts)) / jnp.where(spread == 0, 1, spread)
    share = jnp.where(spread == 0, 0, share)
    # Minus 1, as exp(K) overflows for many experts.
    inner = jnp.exp(len(share) * (share**2 - 1))
    largest = jnp.max(high)
    deltas = block.deltas / jnp.where(largest == 0, 1, largest)
    product = deltas * total(deltas)
    square = largest**2
    bent = jnp.tanh(square * product) / jnp.clip(square, 1e-8, 1)
    # In float32 also of float64 deltas: the line was selected among float32 values,
    # and an entry on it must not count.
    return (inner * jnp.where(square < 1e-8, product, bent)).astype(jnp.float32)


def _above(block: Block, facts: Facts) -> jax.Array:
    """max(p_k, q_k) - q_k, [K, ...]."""
    line = facts["line"].value
    positive, negative = line[: len(line) // 2], line[len(line) // 2 :]
    line = column(jnp.where(positive > 0, positive, -negative), block)
    return jnp.maximum(_competition(block, facts) - line, 0)


def _fact(name: str, facts: Facts, block: Block) -> jax.Array:
    """A selected value as a column; 0 of a model of one entry, which has no rank."""
    return column(jnp.maximum(facts[name].value, 0), block)


def _masked(values: jax.Array, block: Block) -> jax.Array:
    values = jnp.maximum(values, 0).astype(jnp.float32)
    return values if block.valid is None else jnp.where(block.valid, values, 0)


RECORDS: dict[str, Merge] = {
    "pcb": Merge(
        function=pcb,
        form=pcb_form,
        needs=frozenset({"base"}),
        promises=frozenset({"permutation", "base_at_zero", "scale_free", "shift"}),
        leafwise=False,
        differentiable=False,
        reference="Du et al. 2024, arXiv:2410.02396",
    ),
}
