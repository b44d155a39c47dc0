"""Means that one bad expert cannot ruin, entry by entry or by norms."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract
from fusion_jax.merging.form import Block, Facts, Form, Options, Sum
from fusion_jax.merging.gram import roots, squared_norms
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.selection import count
from fusion_jax.types import Coefficients, Key, Params, ParamStack

_NETWORK = 64  # experts that are sorted by exchanges


def coordinate_median(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> Params:
    """The median of experts, entry by entry.

    theta_i = median_k theta_ki, for an even K the mean of the two in the middle

    Withstands fewer than K/2 broken experts. It also drops what only a minority has
    learned: where experts did different tasks, expect less of it than of a mean.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; their values do not
        count.
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. A NaN counts as +infinity.

    Raises:
      ValueError: the coefficients do not fit.

    Reference: Yin et al. 2018, arXiv:1803.01498.
    """
    del base, key
    return run(coordinate_median_form(), stack, coefficients, groups=groups)


def trimmed_mean(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    trim: jax.Array | float = 0.2,
) -> Params:
    """The mean of experts without the largest and smallest, entry by entry.

    theta_i = mean of theta_(g+1)i, ..., theta_(K-g)i, sorted over experts
    g = floor(trim * K), at most (K-1) // 2, which is the median

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; their values do not
        count.
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      trim: share of experts dropped at each end, in [0, 0.5]. With K < 1 / trim none
        is: 0.2 needs five experts.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. A NaN counts as +infinity.

    Raises:
      ValueError: the coefficients do not fit.

    Reference: Yin et al. 2018, arXiv:1803.01498.
    """
    del base, key
    return run(
        trimmed_mean_form(), stack, coefficients, groups=groups, options={"trim": trim}
    )


def norm_clipped_mean(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    max_norm: jax.Array | float = 0.0,
) -> Params:
    """Adds task vectors, the long ones shortened to a common norm.

    theta = theta_0 + sum_k c_k min(1, L / ||delta_k||) delta_k
    with ||delta_k|| over the whole model, and L = max_norm, or median_k ||delta_k||

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; with a sum of one the
        result is a mean.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      max_norm: L; 0 for the median of the norms of all experts.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Sun et al. 2019, arXiv:1911.07963.
    """
    del key
    return run(
        norm_clipped_mean_form(),
        stack,
        coefficients,
        base=require_base(base, "norm_clipped_mean"),
        groups=groups,
        options={"max_norm": max_norm},
    )


def coordinate_median_form() -> Form:
    """The form of `coordinate_median`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts, options
        return _median(block.experts)

    return Form(apply)


def trimmed_mean_form() -> Form:
    """The form of `trimmed_mean`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        num_experts = len(block.experts)
        ends = jnp.minimum(count(options["trim"], num_experts), (num_experts - 1) // 2)
        # Not a product: 0 times infinity would keep what is dropped.
        kept = [
            jnp.where((k >= ends) & (k < num_experts - ends), values, 0)
            for k, values in enumerate(_ascending(block.experts))
        ]
        return functools.reduce(jnp.add, kept) / (num_experts - 2 * ends)

    return Form(apply)


def norm_clipped_mean_form() -> Form:
    """The form of `norm_clipped_mean`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        assert block.base is not None
        norms, present = roots(facts["squares"])
        given = options["max_norm"]
        limit = jnp.where(jnp.asarray(given) > 0, given, _median(norms))
        factor = jnp.minimum(1, limit / jnp.where(present, norms, 1))
        factor = jnp.where(present, factor, 1)
        return block.base + contract(block.coefficients * factor, block.deltas)

    return Form(apply, (Sum("squares", squared_norms),), scope="model")


def _median(values: jax.Array) -> jax.Array:
    """Over the first axis, [K, ...] -> [...]."""
    ordered, size = _ascending(values), len(values)
    # Halves: their sum cannot overflow.
    return ordered[(size - 1) // 2] / 2 + ordered[size // 2] / 2


def _ascending(values: jax.Array) -> list[jax.Array]:
    """[K, ...] sorted over the first axis, NaN as infinity; K arrays of [...]."""
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    size = len(values)
    if size > _NETWORK:
        return list(jnp.sort(values, axis=0))
    # All exchanges are one fused pass, hundreds of times faster on a CPU than a sort
    # over a first axis.
    ordered = list(values)
    for i, j in exchanges(size):
        low, high = ordered[i], ordered[j]
        ordered[i], ordered[j] = jnp.minimum(low, high), jnp.maximum(low, high)
    return ordered


def exchanges(size: int) -> Iterator[tuple[int, int]]:
    """Places to compare and exchange in turn, so that any `size` values end sorted.

    About size (log2 size)^2 / 4 of them: 19 for 8 values, 191 for 32.

    Reference: Batcher 1968; Knuth, The Art of Computer Programming 3, algorithm 5.2.2M.
    """
    top = 1 << max(size - 1, 0).bit_length() >> 1
    p = top
    while p:
        q, r, d = top, 0, p
        while d:
            yield from ((i, i + d) for i in range(size - d) if i & p == r)
            d, q, r = q - p, q >> 1, p
        p >>= 1


RECORDS: dict[str, Merge] = {
    "coordinate_median": Merge(
        function=coordinate_median,
        form=coordinate_median_form,
        promises=frozenset({"equal_experts", "permutation", "scale_free", "shift"}),
        differentiable=False,
        weights=False,
        reference="Yin et al. 2018, arXiv:1803.01498",
    ),
    "trimmed_mean": Merge(
        function=trimmed_mean,
        form=trimmed_mean_form,
        promises=frozenset({"equal_experts", "permutation", "scale_free", "shift"}),
        differentiable=False,
        weights=False,
        reference="Yin et al. 2018, arXiv:1803.01498",
    ),
    "norm_clipped_mean": Merge(
        function=norm_clipped_mean,
        form=norm_clipped_mean_form,
        needs=frozenset({"base"}),
        promises=frozenset({"equal_experts", "permutation", "base_at_zero", "shift"}),
        leafwise=False,
        reference="Sun et al. 2019, arXiv:1911.07963",
    ),
}
