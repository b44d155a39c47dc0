"""TIES: trim small entries, elect a sign, merge those who agree."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import column, combine, moved, total
from fusion_jax.merging.form import Block, Facts, Form, Options, Select, Sum
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.selection import count, kept
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def ties(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    density: jax.Array | float = 0.2,
    scale: jax.Array | float = 1.0,
    trim_scope: str = "model",
    elect: str = "unweighted",
    aggregate: str = "mean",
) -> Params:
    """Trims task vectors, elects signs, and merges the entries that agree.

    d_k = delta_k where |delta_k| is among its largest `density` share, else 0
    s = sign(sum_k d_k), where 0: the sign of the sum of all s (of the leaf, with
        trim_scope='tensor': +)
    theta = theta_0 + scale * sum_k c_k a_k d_k / sum_k c_k a_k,  a_k = [d_k s > 0]

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative with
        aggregate='mean', where only their ratios count.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      density: share of entries that each expert keeps, a number or [K]; exactly
        floor(density * n) of them.
      scale: lambda, of the merged task vector.
      trim_scope: 'model' trims the whole vector of an expert (the paper), 'tensor'
        each leaf by itself (mergekit).
      elect: 'unweighted' (the paper), 'weighted' by coefficients (mergekit), 'none'.
      aggregate: 'mean' of those who agree (the paper), or 'sum'.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. Where every vote is 0 and
      the rest is balanced, entries keep the base.

    Raises:
      ValueError: no base, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Yadav et al. 2023, arXiv:2306.01708.
    """
    del key
    return run(
        ties_form(trim_scope=trim_scope, elect=elect, aggregate=aggregate),
        stack,
        coefficients,
        base=require_base(base, "ties"),
        groups=groups,
        options={"density": density, "scale": scale},
    )


def ties_form(
    *, trim_scope: str = "model", elect: str = "unweighted", aggregate: str = "mean"
) -> Form:
    """The form of `ties`."""
    if trim_scope not in ("model", "tensor"):
        raise ValueError(f"trim_scope: '{trim_scope}' is not one of model, tensor")
    whole = trim_scope == "model"

    def trimmed(block: Block, facts: Facts) -> jax.Array:
        keep = kept(magnitudes(block, {}, {}), facts["trim"], block)
        return jnp.where(keep, block.deltas, 0)

    def majority(block: Block, facts: Facts, options: Options) -> jax.Array:
        del options
        deltas = trimmed(block, facts)
        if elect == "weighted":
            deltas *= column(block.coefficients, block)
        return jnp.sum(jnp.sign(total(deltas)))

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        zero = jnp.sign(facts["majority"]) if whole else 1.0
        merged = combine(
            trimmed(block, facts),
            block.coefficients,
            elect=elect,
            aggregate=aggregate,
            zero_sign=zero,
        )
        return moved(block, merged, options["scale"])

    passes: tuple[Select | Sum, ...] = (Select("trim", magnitudes, density_counts),)
    if whole:
        passes += (Sum("majority", majority),)
    return Form(apply, passes, scope="model" if whole else "leaf")


def magnitudes(block: Block, facts: Facts, options: Options) -> jax.Array:
    """|delta_k| in float32, [K, ...]: the values of a `Select`."""
    del facts, options
    return jnp.abs(block.deltas).astype(jnp.float32)


def density_counts(size: int, facts: Facts, options: Options) -> jax.Array:
    """floor(density * size): the counts of a `Select`."""
    del facts
    return count(options["density"], size)


RECORDS: dict[str, Merge] = {
    "ties": Merge(
        function=ties,
        form=ties_form,
        needs=frozenset({"base"}),
        promises=frozenset({"permutation", "scale_free", "shift"}),
        leafwise=False,
        differentiable=False,
        reference="Yadav et al. 2023, arXiv:2306.01708",
    ),
}
