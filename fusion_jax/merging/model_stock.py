"""Model Stock: how far to go from the base, from the angles between experts alone."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract
from fusion_jax.merging.form import Block, Facts, Form, Options, Sum
from fusion_jax.merging.gram import combine_rows, directions, gram
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def model_stock(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    filter_wise: bool = False,
    input_axis: int = -2,
) -> Params:
    """Goes from the base towards the mean of experts as far as their angles allow.

    theta = t mean_k theta_k + (1-t) theta_0,  t = K q / (1 + (K-1) q)
    q = mean over pairs of cos(delta_j, delta_k), not below 0; leaf by leaf

    So t is in [0, 1]: 1 for equal experts, 0 where they are orthogonal or opposite. A
    delta of 0 counts as orthogonal to all others.

    Args:
      stack: tree of [K, ...], K >= 2.
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; their values do not
        count.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      filter_wise: a q for each output unit, from what it reads along the input axis.
        Leaves of fewer than two axes have one q.
      input_axis: -2 in Flax kernels [in, out], -1 in PyTorch's.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, one expert, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Jang et al. 2024, arXiv:2403.19522 (two experts; the mean over pairs is
    the usual reading for more).
    """
    del key
    return run(
        model_stock_form(filter_wise=filter_wise, input_axis=input_axis),
        stack,
        coefficients,
        base=require_base(base, "model_stock"),
        groups=groups,
    )


def model_stock_form(*, filter_wise: bool = False, input_axis: int = -2) -> Form:
    """The form of `model_stock`."""
    if input_axis not in (-1, -2):
        raise ValueError(f"input_axis: {input_axis} is neither -1 nor -2")

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del options
        assert block.base is not None
        if len(block.experts) < 2:
            raise ValueError(
                "model_stock: one expert given, needs two or more; use wise_ft for one"
            )
        if filter_wise:
            return block.base + combine_rows(block.deltas, input_axis, _weights)
        return block.base + contract(_weights(facts["gram"]), block.deltas)

    if filter_wise:
        return Form(apply, unit="row", input_axis=input_axis)
    return Form(apply, (Sum("gram", gram),))


def _weights(inner: jax.Array) -> jax.Array:
    """The weight t / K of each expert: [..., K, K] inner products -> [..., K]."""
    num_experts = inner.shape[-1]
    _, cosines, _ = directions(inner)
    pairs = jnp.where(jnp.eye(num_experts, dtype=bool), 0, cosines)
    q = jnp.sum(pairs, axis=(-2, -1)) / (num_experts * (num_experts - 1))
    # Below 0 is extrapolation away from all experts, with a pole at -1 / (K-1).
    q = jnp.clip(q, 0, 1)
    share = q / (1 + (num_experts - 1) * q)
    return jnp.broadcast_to(share[..., None], inner.shape[:-1])


RECORDS: dict[str, Merge] = {
    "model_stock": Merge(
        function=model_stock,
        form=model_stock_form,
        needs=frozenset({"base"}),
        promises=frozenset({"equal_experts", "permutation", "scale_free", "shift"}),
        experts=(2, None),
        weights=False,
        reference="Jang et al. 2024, arXiv:2403.19522",
    ),
}
