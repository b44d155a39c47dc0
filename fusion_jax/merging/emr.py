"""EMR: elect one task vector, and mask and rescale it for each task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import moved, total
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


class EMR(NamedTuple):
    """A unified model, and what turns it into the model of each task.

    Attributes:
      params: theta_0 + u.
      masks: tree of [K, ...] bool; False for leaves that are not floating.
      scales: [K] float32.
    """

    params: Params
    masks: Params
    scales: jax.Array


def emr(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> EMR:
    """Elects a unified task vector, with a mask and a scale for each task.

    g = 1 where sum_k delta_k > 0, else -1;  M_k = [delta_k g > 0]
    u = g max_k |delta_k| over the experts with M_k, 0 where there are none
    s_k = sum |delta_k| / sum |M_k u|, over the whole vector
    theta = theta_0 + u;  of task k: theta_0 + s_k M_k u

    The model of a task needs the task to be known: `params` alone is one model, but the
    paper's results are those of `emr_model`.

    Args:
      stack: tree of [K, ...].
      coefficients: not used: the election and the largest entry have no weights. They
        must fit all the same.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: not used.

    Returns:
      `EMR`; params in the dtypes of `stack`, computed in float32. The scale of an
      expert that agrees nowhere is 0.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Huang et al. 2024, arXiv:2405.17461.
    """
    del key
    base = require_base(base, "emr")
    params = run(Form(_apply), stack, coefficients, base=base, groups=groups)
    anchors = trees.flatten(base)
    num_experts = trees.stack_size(stack)
    own, unified = jnp.zeros(num_experts), jnp.zeros(num_experts)
    masks = {}
    for name, x in trees.flatten(stack).items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            masks[name] = jnp.zeros(x.shape, bool)
            continue
        deltas = x.astype(jnp.float32) - anchors[name].astype(jnp.float32)
        elected, masks[name] = _elected(deltas)
        axes = tuple(range(1, x.ndim))
        own += jnp.sum(jnp.abs(deltas), axis=axes)
        unified += jnp.sum(jnp.abs(masks[name] * elected), axis=axes)
    scales = jnp.where(unified == 0, 0, own / jnp.where(unified == 0, 1, unified))
    return EMR(params, trees.unflatten(masks), scales)


def emr_model(result: EMR, base: Params, k: int | jax.Array) -> Params:
    """The model of one task, theta_0 + s_k M_k u.

    Args:
      result: of `emr`; u is read from its params, as exact as their dtype.
      base: tree of [...], the one given to `emr`.
      k: of the expert, in the order of the stack.

    Returns:
      Tree of [...], dtypes of `result.params`, computed in float32. Leaves that are not
      floating are those of `result.params`.
    """
    trees.check_same_structure([result.params, base], ["the result", "base"])
    masks, anchors = trees.flatten(result.masks), trees.flatten(base)

    def rebuild(name: str, x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        anchor = anchors[name].astype(jnp.float32)
        unified = x.astype(jnp.float32) - anchor
        model = anchor + jnp.where(masks[name][k], result.scales[k] * unified, 0)
        return model.astype(x.dtype)

    return trees.map_with_names(rebuild, result.params)


def _apply(block: Block, facts: Facts, options: Options) -> jax.Array:
    del facts, options
    return moved(block, _elected(block.deltas)[0], 1.0)


def _elected(deltas: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(u [...], M [K, ...] bool)."""
    sign = jnp.where(total(deltas) > 0, 1.0, -1.0).astype(deltas.dtype)
    agree = deltas * sign > 0
    return sign * jnp.max(jnp.where(agree, jnp.abs(deltas), 0), axis=0), agree


RECORDS: dict[str, Merge] = {
    "emr": Merge(
        function=emr,
        needs=frozenset({"base"}),
        promises=frozenset({"equal_experts", "permutation", "scale_free", "shift"}),
        differentiable=False,
        weights=False,
        reference="Huang et al. 2024, arXiv:2405.17461",
    ),
}
