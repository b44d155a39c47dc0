"""Merges of two experts along an arc: SLERP and NuSLERP."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract
from fusion_jax.merging.form import Block, Facts, Form, Options, Sum
from fusion_jax.merging.gram import combine_rows, directions, gram
from fusion_jax.merging.in_memory import run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack

_STRAIGHT = 0.9995  # |cosine| above which an arc is a line
_BALANCED = 1e-6  # |c_1 + c_2| below this share of |c_1| + |c_2| is 0


def slerp(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> Params:
    """Spherical interpolation between two experts, leaf by leaf.

    theta = (sin((1-t) w) theta_1 + sin(t w) theta_2) / sin(w)
    with w the angle between theta_1 and theta_2, and t = c_2 / (c_1 + c_2)

    Args:
      stack: tree of [2, ...].
      coefficients: [2], [G, 2] with `groups`, or a tree of [2]; pass [1-t, t]. Only the
        ratio counts; where the sum is 0, t = 0.5.
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. The line
      (1-t) theta_1 + t theta_2 where |cos w| > 0.9995 or a norm is 0.

    Raises:
      ValueError: not two experts, or coefficients that do not fit.

    Reference: Shoemake 1985, doi:10.1145/325165.325242.
    """
    del base, key
    return run(slerp_form(), stack, coefficients, groups=groups)


def nuslerp(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    vectors: str = "leaf",
    input_axis: int = -2,
) -> Params:
    """Spherical interpolation between two task vectors, by leaf, row or column.

    theta = theta_0 + (sin((1-t) w) delta_1 + sin(t w) delta_2) / sin(w)
    with w the angle between delta_1 and delta_2, and t = c_2 / (c_1 + c_2); without a
    base theta_0 = 0.

    Args:
      stack: tree of [2, ...].
      coefficients: [2], [G, 2] with `groups`, or a tree of [2]; pass [1-t, t]. Only the
        ratio counts; where the sum is 0, t = 0.5.
      base: tree of [...], the pretrained model, or None.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      vectors: what has an angle of its own: 'leaf', 'row' (what one output unit reads,
        along the input axis) or 'column' (across it). Leaves of fewer than two axes
        are one vector.
      input_axis: -2 in Flax kernels [in, out], -1 in PyTorch's.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. The line between both
      where |cos w| > 0.9995 or a norm is 0.

    Raises:
      ValueError: not two experts, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Shoemake 1985, doi:10.1145/325165.325242; on task vectors as `nuslerp` of
    Goddard et al. 2024, arXiv:2403.13257.
    """
    del key
    form = nuslerp_form(vectors=vectors, input_axis=input_axis)
    return run(form, stack, coefficients, base=base, groups=groups)


def slerp_form() -> Form:
    """The form of `slerp`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del options
        _check_pair(block, "slerp")
        return contract(arc(facts["gram"], block.coefficients), block.experts)

    return Form(apply, (Sum("gram", gram),))


def nuslerp_form(*, vectors: str = "leaf", input_axis: int = -2) -> Form:
    """The form of `nuslerp`."""
    if vectors not in ("leaf", "row", "column"):
        raise ValueError(f"vectors: '{vectors}' is not one of leaf, row, column")
    if input_axis not in (-1, -2):
        raise ValueError(f"input_axis: {input_axis} is neither -1 nor -2")
    axis = input_axis if vectors == "row" else -3 - input_axis

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del options
        _check_pair(block, "nuslerp")
        if vectors == "leaf":
            merged = contract(arc(facts["gram"], block.coefficients), block.deltas)
        else:
            merged = combine_rows(
                block.deltas, axis, lambda inner: arc(inner, block.coefficients)
            )
        return merged if block.base is None else block.base + merged

    if vectors == "leaf":
        return Form(apply, (Sum("gram", gram),))
    unit = "row" if vectors == "row" else "leaf"
    return Form(apply, unit=unit, input_axis=input_axis)


def arc(inner: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Weights of two vectors on the arc between them.

    Args:
      inner: [..., 2, 2], their inner products.
      coefficients: [2], proportional to [1-t, t].

    Returns:
      [..., 2]: sin([1-t, t] w) / sin(w), or [1-t, t] where the arc is a line.
    """
    total = jnp.sum(coefficients)
    balanced = jnp.abs(total) <= _BALANCED * jnp.sum(jnp.abs(coefficients))
    share = jnp.where(balanced, 0.5, coefficients / jnp.where(balanced, 1, total))
    _, cosines, present = directions(inner)
    cosine = cosines[..., 0, 1, None]
    straight = (jnp.abs(cosine) > _STRAIGHT) | ~jnp.all(present, -1, keepdims=True)
    angle = jnp.arccos(jnp.where(straight, 0, cosine))
    weights = jnp.sin(share * angle) / jnp.sin(angle)
    # A compiler may take another sine above than below; an end is that expert exactly.
    exact = weights + jax.lax.stop_gradient(1 - weights)
    return jnp.where(straight, share, jnp.where(share == 1, exact, weights))


def _check_pair(block: Block, method: str) -> None:
    if len(block.experts) != 2:
        raise ValueError(
            f"{method}: {len(block.experts)} experts given, takes two; use multislerp "
            "or karcher for another number"
        )


RECORDS: dict[str, Merge] = {
    "slerp": Merge(
        function=slerp,
        form=slerp_form,
        promises=frozenset({"one_hot", "equal_experts", "permutation", "scale_free"}),
        experts=(2, 2),
        reference="Shoemake 1985, doi:10.1145/325165.325242",
    ),
    "nuslerp": Merge(
        function=nuslerp,
        form=nuslerp_form,
        accepts=frozenset({"base"}),
        promises=frozenset({"one_hot", "equal_experts", "permutation", "scale_free"}),
        experts=(2, 2),
        reference="Goddard et al. 2024, arXiv:2403.13257",
    ),
}
