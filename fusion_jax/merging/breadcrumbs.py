"""Breadcrumbs: drop the largest and the smallest entries of each leaf."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import combine, moved
from fusion_jax.merging.form import Block, Facts, Form, Options, Select
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.selection import count, kept
from fusion_jax.merging.ties import magnitudes
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def breadcrumbs(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    density: jax.Array | float = 0.9,
    gamma: jax.Array | float = 0.01,
    scale: jax.Array | float = 1.0,
    elect: str = "none",
    aggregate: str = "sum",
) -> Params:
    """Keeps the middle of each task vector, leaf by leaf.

    d_k = delta_k without the floor(gamma n) largest |delta_k| of a leaf, and of the
        rest only the floor(density n) largest (or all, if they are fewer)
    theta = theta_0 + scale * sum_k c_k d_k

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative with
        aggregate='mean', where only their ratios count.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      density: share of entries that each expert keeps, a number or [K].
      gamma: share of the largest entries that each expert drops, a number or [K]. Of a
        leaf of less than 1/gamma entries none is.
      scale: lambda, of the merged task vector.
      elect: 'none', or signs elected as in TIES: 'unweighted', 'weighted'.
      aggregate: 'sum', or 'mean' over coefficients (of those who agree).

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. Of equal entries, the
      first in position count as the larger.

    Raises:
      ValueError: no base, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Davari and Belilovsky 2023, arXiv:2312.06795.
    """
    del key
    return run(
        breadcrumbs_form(elect=elect, aggregate=aggregate),
        stack,
        coefficients,
        base=require_base(base, "breadcrumbs"),
        groups=groups,
        options={"density": density, "gamma": gamma, "scale": scale},
    )


def breadcrumbs_ties(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    density: jax.Array | float = 0.9,
    gamma: jax.Array | float = 0.01,
    scale: jax.Array | float = 1.0,
    elect: str = "unweighted",
    aggregate: str = "mean",
) -> Params:
    """`breadcrumbs` with the election and the mean of TIES.

    theta = theta_0 + scale * sum_k c_k a_k d_k / sum_k c_k a_k,
        a_k = [d_k s > 0],  s = sign(sum_k d_k),  d_k as in `breadcrumbs`

    Args:
      stack: see `breadcrumbs`.
      coefficients: see `breadcrumbs`; not negative with aggregate='mean'.
      base: see `breadcrumbs`.
      key: not used.
      groups: see `breadcrumbs`.
      density: see `breadcrumbs`.
      gamma: see `breadcrumbs`.
      scale: see `breadcrumbs`.
      elect: see `breadcrumbs`.
      aggregate: see `breadcrumbs`.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Davari and Belilovsky 2023, arXiv:2312.06795.
    """
    return breadcrumbs(
        stack,
        coefficients,
        base=require_base(base, "breadcrumbs_ties"),
        key=key,
        groups=groups,
        density=density,
        gamma=gamma,
        scale=scale,
        elect=elect,
        aggregate=aggregate,
    )


def breadcrumbs_form(*, elect: str = "none", aggregate: str = "sum") -> Form:
    """The form of `breadcrumbs`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        sizes = magnitudes(block, facts, options)
        outlier = kept(sizes, facts["outliers"], block)
        middle = kept(sizes, facts["upper"], block) & ~outlier
        merged = combine(
            jnp.where(middle, block.deltas, 0),
            block.coefficients,
            elect=elect,
            aggregate=aggregate,
        )
        return moved(block, merged, options["scale"])

    return Form(
        apply,
        (
            Select("outliers", magnitudes, _outliers),
            Select("upper", magnitudes, _upper),
        ),
    )


def breadcrumbs_ties_form(
    *, elect: str = "unweighted", aggregate: str = "mean"
) -> Form:
    """The form of `breadcrumbs_ties`."""
    return breadcrumbs_form(elect=elect, aggregate=aggregate)


def _outliers(size: int, facts: Facts, options: Options) -> jax.Array:
    del facts
    return count(options["gamma"], size)


def _upper(size: int, facts: Facts, options: Options) -> jax.Array:
    # Outliers and kept ones, counted from the top: counting the small ones from the
    # bottom instead rounds to other numbers, and to none for small leaves.
    top = _outliers(size, facts, options)
    return jnp.minimum(top + count(options["density"], size), size)


RECORDS: dict[str, Merge] = {
    "breadcrumbs": Merge(
        function=breadcrumbs,
        form=breadcrumbs_form,
        needs=frozenset({"base"}),
        promises=frozenset({"permutation", "base_at_zero", "shift"}),
        differentiable=False,
        reference="Davari and Belilovsky 2023, arXiv:2312.06795",
    ),
    "breadcrumbs_ties": Merge(
        function=breadcrumbs_ties,
        form=breadcrumbs_ties_form,
        needs=frozenset({"base"}),
        promises=frozenset({"permutation", "base_at_zero", "scale_free", "shift"}),
        differentiable=False,
        reference="Davari and Belilovsky 2023, arXiv:2312.06795",
    ),
}
