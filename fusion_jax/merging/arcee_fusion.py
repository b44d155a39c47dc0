"""Arcee Fusion: take over the entries whose change matters most."""

import math

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.form import Block, Facts, Form, Options, Select
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def arcee_fusion(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    input_axis: int = -2,
) -> Params:
    """Copies the entries whose importance is an outlier of their leaf.

    p = softmax(theta_1), q = softmax(theta_0) along the input axis
    importance = |theta_1 - theta_0| * sum_in p log(p / q)
    theta = theta_1 where importance >= median + 1.5 (Q3 - Q1), else theta_0

    Quartiles are order statistics of all n entries of the leaf, not interpolated: from
    the top, the median is number ceil(n/2), Q3 number floor(n/4) + 1, and Q1 number
    n + 1 - ceil(n/4), or n - 1 where that is less. A leaf of one entry is copied.

    Args:
      stack: tree of [1, ...], the other model.
      coefficients: [1], [G, 1] with `groups`, or a tree of [1]; their shape is
        checked, their values do not count.
      base: tree of [...], the model to start from.
      key: not used; nothing is sampled.
      groups: as the coefficients.
      input_axis: of matrices; -2 for Flax kernels [in, out], -1 for PyTorch's. A
        vector's is its only axis.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32; every entry is one of the
      base or of the other model, bit for bit.

    Raises:
      ValueError: more than one expert, no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the expert.

    Reference: no publication; a method of mergekit.
    """
    del key
    return run(
        arcee_fusion_form(input_axis=input_axis),
        stack,
        coefficients,
        base=require_base(base, "arcee_fusion"),
        groups=groups,
    )


def arcee_fusion_form(*, input_axis: int = -2) -> Form:
    """The form of `arcee_fusion`."""

    def importance(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts, options
        assert block.base is not None
        if len(block.experts) != 1:
            raise ValueError(
                f"arcee_fusion: {len(block.experts)} experts given, takes one"
            )
        delta, base = block.deltas[0], block.base
        if base.ndim == 0:
            return jnp.zeros((1,), jnp.float32)
        axis = input_axis if base.ndim > 1 else -1
        score = jnp.abs(delta) * _divergence(delta, base, axis)
        return score[None].astype(jnp.float32)

    def thrice(block: Block, facts: Facts, options: Options) -> jax.Array:
        score = importance(block, facts, options)
        return jnp.broadcast_to(score, (3, *score.shape[1:]))

    def ranks(size: int, facts: Facts, options: Options) -> jax.Array:
        del facts, options
        first = max(1, min(size + 1 - -(-size // 4), size - 1))
        return jnp.asarray([size // 4 + 1, -(-size // 2), first])

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        assert block.base is not None
        score = importance(block, facts, options)[0]
        if math.prod(block.shape) == 1:  # its quartiles are no thresholds: all are kept
            return block.experts[0]
        third, median, first = facts["quartiles"].value
        return jnp.where(
            score >= median + 1.5 * (third - first), block.experts[0], block.base
        )

    return Form(
        apply,
        (Select("quartiles", thrice, ranks),),
        unit="row",
        input_axis=input_axis,
    )


def _divergence(delta: jax.Array, base: jax.Array, axis: int) -> jax.Array:
    """KL(softmax(base + delta) || softmax(base)) along an axis, which is kept as 1.

    The sum of p (r - 1 + exp(-r)), r = log(p / q), is that of p r, as p and q sum to
    one; but it has no terms that cancel, and a fine-tuned row differs so little from
    its base that in float32 they would leave nothing.
    """
    if base.shape[axis] == 1:  # both are 1; what follows would leave rounding noise
        return jnp.zeros_like(base)
    log_q = jax.nn.log_softmax(base, axis=axis)
    q = jnp.exp(log_q)
    # log sum q exp(delta), by which the logarithm of the normaliser grows.
    near = jnp.max(jnp.abs(delta), axis=axis, keepdims=True) < 1
    step = jnp.where(near, delta, 0)
    moved = jnp.log1p(jnp.sum(q * jnp.expm1(step), axis=axis, keepdims=True))
    far = jax.nn.logsumexp(log_q + delta, axis=axis, keepdims=True)
    r = delta - jnp.where(near, moved, far)
    p = jnp.exp(log_q + r)
    series = r**2 * (1 / 2 - r * (1 / 6 - r * (1 / 24 - r * (1 / 120 - r / 720))))
    terms = jnp.where(jnp.abs(r) < 0.1, p * series, p * (r - 1) + q)
    return jnp.sum(terms, axis=axis, keepdims=True)


RECORDS: dict[str, Merge] = {
    "arcee_fusion": Merge(
        function=arcee_fusion,
        form=arcee_fusion_form,
        needs=frozenset({"base"}),
        promises=frozenset({"scale_free"}),
        differentiable=False,
        experts=(1, 1),
        reference="no publication; a method of mergekit",
        weights=False,
    ),
}
