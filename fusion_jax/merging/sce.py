"""SCE: select entries that differ between experts, calculate weights, erase."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fusion_jax import trees
from fusion_jax.merging.combine import combine, moved
from fusion_jax.merging.form import Block, Facts, Form, Options, Select, Sum
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.selection import count, kept
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def sce(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    select_topk: jax.Array | float = 1.0,
    scale: jax.Array | float = 1.0,
) -> Params:
    """Weighs experts, leaf by leaf, by the mean square of their task vectors.

    d_k = delta_k where var_k(delta) is among the largest `select_topk` share of those
        entries of the leaf where it is not 0, else 0; all of delta_k for 1
    w_k = mean(d_k^2) / sum_j mean(d_j^2)
    s = sign(sum_k d_k),  a_k = [d_k s > 0]
    theta = theta_0 + scale * sum_k w_k a_k d_k / sum_k w_k a_k

    A multiple of all task vectors gives that multiple of the merged one: no threshold
    is absolute.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; their shape is
        checked, their values do not count: the task vectors give the weights.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: as the coefficients.
      select_topk: share of the entries that differ, of each leaf; 1 selects all.
      scale: lambda, of the merged task vector.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. Where all task vectors of
      a leaf are 0, the base.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Wan et al. 2024, arXiv:2408.07990.
    """
    del key
    return run(
        sce_form(),
        stack,
        coefficients,
        base=require_base(base, "sce"),
        groups=groups,
        options={"select_topk": select_topk, "scale": scale},
    )


def sce_form() -> Form:
    """The form of `sce`."""

    def selected(block: Block, facts: Facts, options: Options) -> jax.Array:
        keep = kept(_spread(block, facts, options), facts["select"], block)[0]
        keep |= jnp.asarray(options["select_topk"]) >= 1
        return jnp.where(keep, block.deltas, 0)

    def varying(block: Block, facts: Facts, options: Options) -> jax.Array:
        return jnp.sum(_spread(block, facts, options) > 0, dtype=jnp.int32)

    def counts(size: int, facts: Facts, options: Options) -> jax.Array:
        del size
        share: Any = options["select_topk"]
        varying: Any = facts["varying"]
        traced = any(isinstance(x, Tracer) for x in (share, varying))
        if traced or isinstance(share, jax.Array):
            return count(jnp.asarray(share), varying)
        # float64 where nothing is traced: the counts of large leaves need it.
        return count(np.asarray(share, np.float64), int(varying))

    def level(block: Block, facts: Facts, options: Options) -> jax.Array:
        return jnp.sum(jnp.abs(selected(block, facts, options))) / block.size

    def squares(block: Block, facts: Facts, options: Options) -> jax.Array:
        # Of multiples of the level: squares of small deltas would underflow.
        ratio = selected(block, facts, options) / _positive(facts["level"])
        return jnp.sum(ratio**2, axis=tuple(range(1, ratio.ndim))) / block.size

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        weights = facts["squares"] / _positive(jnp.sum(facts["squares"]))
        merged = combine(
            selected(block, facts, options),
            weights,
            elect="unweighted",
            aggregate="mean",
        )
        return moved(block, merged, options["scale"])

    passes = (
        Sum("varying", varying),
        Select("select", _spread, counts),
        Sum("level", level),
        Sum("squares", squares),
    )
    return Form(apply, passes)


def _spread(block: Block, facts: Facts, options: Options) -> jax.Array:
    """The standard deviation over experts, [1, ...] float32; it orders as variances.

    From differences to the first expert, so that it is exactly 0 where all are equal,
    and in multiples of their largest, so that squares do not underflow.
    """
    del facts, options
    away = block.experts - block.experts[0]
    away -= jnp.mean(away, axis=0)
    largest = jnp.max(jnp.abs(away), axis=0)
    square = jnp.mean((away / _positive(largest)) ** 2, axis=0)
    return (largest * jnp.sqrt(square))[None].astype(jnp.float32)


def _positive(x: jax.Array) -> jax.Array:
    """The same, and 1 in place of 0."""
    return jnp.where(x > 0, x, 1)


RECORDS: dict[str, Merge] = {
    "sce": Merge(
        function=sce,
        form=sce_form,
        needs=frozenset({"base"}),
        promises=frozenset({"equal_experts", "permutation", "scale_free", "shift"}),
        differentiable=False,
        reference="Wan et al. 2024, arXiv:2408.07990",
        weights=False,
    ),
}
