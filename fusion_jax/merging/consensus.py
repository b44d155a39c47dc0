"""TALL masks and the consensus merge: which entries of a merge serve which expert."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.coefficients import per_leaf
from fusion_jax.merging.combine import contract, moved
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.linear import task_arithmetic
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


class TallMasks(NamedTuple):
    """A sum of task vectors, and the entries of it that serve each task.

    Attributes:
      params: theta_0 + scale * sum_k c_k delta_k.
      masks: tree of [K, ...] bool; False for leaves that are not floating.
    """

    params: Params
    masks: Params


def tall_masks(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    mask_scale: jax.Array | float = 0.4,
    scale: jax.Array | float = 1.0,
) -> TallMasks:
    """Task arithmetic, with masks that recover each task from it.

    delta_M = sum_k c_k delta_k
    m_k = [|delta_k| > lambda_k |delta_M - delta_k|]
    theta = theta_0 + scale * delta_M;  of task k: theta_0 + m_k scale delta_M

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; the paper has ones.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      mask_scale: lambda_k, a number or [K]; the paper chooses 0.2 to 0.6 by task.
      scale: of the merged task vector.

    Returns:
      `TallMasks`; `tall_model` gives the model of one task.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Wang et al. 2024, arXiv:2405.07813.
    """
    del key
    base = require_base(base, "tall_masks")
    params = task_arithmetic(stack, coefficients, base=base, groups=groups, scale=scale)
    rows, anchors = per_leaf(stack, coefficients, groups), trees.flatten(base)

    def mask(name: str, x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, bool)
        deltas = x.astype(jnp.float32) - anchors[name].astype(jnp.float32)
        return _serves(deltas, contract(rows[name], deltas), mask_scale)

    return TallMasks(params, trees.map_with_names(mask, stack))


def tall_model(result: TallMasks, base: Params, k: int | jax.Array) -> Params:
    """The model of one task: the merged entries that serve it, else the base.

    Args:
      result: of `tall_masks`.
      base: tree of [...], the one given to `tall_masks`.
      k: of the expert, in the order of the stack.

    Returns:
      Tree of [...], dtypes of `result.params`. Leaves that are not floating are those
      of `result.params`.
    """
    trees.check_same_structure([result.params, base], ["the result", "base"])
    masks, anchors = trees.flatten(result.masks), trees.flatten(base)

    def choose(name: str, x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(masks[name][k], x, anchors[name])

    return trees.map_with_names(choose, result.params)


def consensus(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    mask_scale: jax.Array | float = 0.4,
    scale: jax.Array | float = 1.0,
    threshold: int = 2,
) -> Params:
    """Keeps the entries of the summed task vector that serve several experts.

    delta_M = sum_k c_k delta_k
    m_k = [|delta_k| > lambda_k |delta_M - delta_k|]
    theta = theta_0 + scale * delta_M [sum_k m_k >= threshold]

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; the paper has ones.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      mask_scale: lambda_k, a number or [K]; the paper chooses 0.2 to 0.6 by task.
      scale: of the merged task vector.
      threshold: how many experts an entry must serve; 2 (the paper) drops those of one
        or none, 1 those of none, 0 keeps all.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, a threshold that no entry can reach, or coefficients that do
        not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Wang et al. 2024, arXiv:2405.07813.
    """
    del key
    return run(
        consensus_form(threshold=threshold),
        stack,
        coefficients,
        base=require_base(base, "consensus"),
        groups=groups,
        options={"mask_scale": mask_scale, "scale": scale},
    )


def consensus_form(*, threshold: int = 2) -> Form:
    """The form of `consensus`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        if threshold > len(block.experts):
            raise ValueError(
                f"consensus: no entry serves {threshold} of {len(block.experts)} "
                "experts; lower the threshold"
            )
        merged = contract(block.coefficients, block.deltas)
        serves = _serves(block.deltas, merged, options["mask_scale"])
        agreed = jnp.sum(serves, axis=0) >= threshold
        return moved(block, jnp.where(agreed, merged, 0), options["scale"])

    return Form(apply)


def _serves(deltas: jax.Array, merged: jax.Array, mask_scale: Any) -> jax.Array:
    """m_k, [K, ...] bool."""
    rows = jnp.broadcast_to(jnp.asarray(mask_scale, deltas.dtype), (len(deltas),))
    rows = rows.reshape(-1, *[1] * merged.ndim)
    return jnp.abs(deltas) > rows * jnp.abs(merged - deltas)


_REFERENCE = "Wang et al. 2024, arXiv:2405.07813"

RECORDS: dict[str, Merge] = {
    "consensus": Merge(
        function=consensus,
        form=consensus_form,
        needs=frozenset({"base"}),
        promises=frozenset({"equal_experts", "permutation", "base_at_zero", "shift"}),
        differentiable=False,
        experts=(2, None),
        reference=_REFERENCE,
    ),
    "tall_masks": Merge(
        function=tall_masks,
        needs=frozenset({"base"}),
        promises=frozenset(
            {"one_hot", "equal_experts", "permutation", "base_at_zero", "shift"}
        ),
        reference=_REFERENCE,
    ),
}
