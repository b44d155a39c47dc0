"""Linear merges: weighted average, task arithmetic, WiSE-FT interpolation."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.coefficients import per_leaf
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def weighted_average(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> Params:
    """Weighted average of experts, with the weights as they are given.

    theta = sum_k c_k theta_k

    Args:
      stack: tree of [K, ...]; float leaves of any dtype.
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not normalised.
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.

    Returns:
      Tree of [...], dtypes of `stack`; sums in float32. Leaves that are not floating
      are those of the first expert.

    Raises:
      ValueError: the coefficients do not fit the stack.

    Reference: Wortsman et al. 2022, arXiv:2203.05482 (uniform weights).
    """
    del base, key
    rows = per_leaf(stack, coefficients, groups)
    return trees.map_with_names(lambda name, x: _weighted_sum(rows[name], x), stack)


def task_arithmetic(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> Params:
    """Adds scaled task vectors to the pretrained model.

    theta = theta_0 + sum_k c_k (theta_k - theta_0)

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; any sign and sum.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.

    Returns:
      Tree of [...], dtypes of `stack`; computed in float32 from differences, so that
      small task vectors keep their digits.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Ilharco et al. 2023, arXiv:2212.04089.
    """
    del key
    base = _require_base(base, stack, "task_arithmetic")
    rows = per_leaf(stack, coefficients, groups)
    anchors = trees.flatten(base)

    def add(name: str, experts: jax.Array) -> jax.Array:
        if not jnp.issubdtype(experts.dtype, jnp.floating):
            return experts[0]
        anchor = anchors[name].astype(jnp.float32)
        vectors = experts.astype(jnp.float32) - anchor
        return (anchor + _contract(rows[name], vectors)).astype(experts.dtype)

    return trees.map_with_names(add, stack)


def wise_ft(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> Params:
    """Straight line between the pretrained model and one fine-tuned model.

    theta = (1 - c) theta_0 + c theta_1

    Args:
      stack: tree of [1, ...], the fine-tuned model.
      coefficients: [1], [G, 1] with `groups`, or a tree of [1]; 0 is the base.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32; exact at 0 and 1.

    Raises:
      ValueError: more than one expert, no base, or coefficients that do not fit.

    Reference: Wortsman et al. 2021, arXiv:2109.01903.
    """
    del key
    base = _require_base(base, stack, "wise_ft")
    if trees.stack_size(stack) != 1:
        raise ValueError(
            f"wise_ft: {trees.stack_size(stack)} experts given, takes one; use "
            "task_arithmetic for several"
        )
    rows = per_leaf(stack, coefficients, groups)
    anchors = trees.flatten(base)

    def interpolate(name: str, experts: jax.Array) -> jax.Array:
        if not jnp.issubdtype(experts.dtype, jnp.floating):
            return experts[0]
        alpha = rows[name][0]
        merged = (1 - alpha) * anchors[name].astype(jnp.float32)
        merged += alpha * experts[0].astype(jnp.float32)
        return merged.astype(experts.dtype)

    return trees.map_with_names(interpolate, stack)


def _weighted_sum(row: jax.Array, experts: jax.Array) -> jax.Array:
    if not jnp.issubdtype(experts.dtype, jnp.floating):
        return experts[0]
    return _contract(row, experts.astype(jnp.float32)).astype(experts.dtype)


def _contract(row: jax.Array, experts: jax.Array) -> jax.Array:
    # Highest precision: the default of a TPU rounds the operands to bfloat16, whose
    # 8 bits hide the small steps of a search.
    return jnp.einsum("k,k...->...", row, experts, precision="highest")


def _require_base(base: Params | None, stack: ParamStack, method: str) -> Params:
    if base is None:
        raise ValueError(f"{method}: needs base=, the pretrained parameters")
    first = jax.eval_shape(lambda s: jax.tree.map(lambda x: x[0], s), stack)
    trees.check_same_structure([first, base], ["the experts", "base"])
    return base
