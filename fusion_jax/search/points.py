"""The points that a search interpolates: experts, and what they share."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.types import Params, ParamStack


class Points(NamedTuple):
    """K models of one structure, with equal leaves held once.

    Attributes:
      names: of the K points, in the order of the coefficients.
      stack: tree of [K, ...], the leaves in which the points differ.
      shared: tree of [...], the leaves that all of them have in common; a weighted
        average whose weights sum to one leaves them unchanged, so that they are
        neither stacked nor merged.
      groups: ordered (regular expression, group) rules over the leaves of `stack`;
        one group by default.
    """

    names: tuple[str, ...]
    stack: ParamStack
    shared: Params
    groups: tuple[tuple[str, int], ...] = ((".*", 0),)

    @property
    def num_groups(self) -> int:
        """G, the rows of coefficients that a candidate has."""
        return 1 + max(group for _, group in self.groups)


def make_points(
    models: Mapping[str, Params],
    *,
    shared: Sequence[str] = (),
    groups: Sequence[tuple[str, int]] = ((".*", 0),),
) -> Points:
    """Stacks models and holds the leaves named by `shared` once.

    Args:
      models: name -> parameters, of one structure.
      shared: regular expressions of leaves that are the same in all models, such as
        embedding tables that were frozen.
      groups: ordered (regular expression, group) rules; [G, K] coefficients.

    Returns:
      The points.

    Raises:
      TreeMismatch: the models differ in structure.
      ValueError: a leaf under `shared` differs between models, a value is not
        finite, or no rule of `groups` covers a leaf; every leaf is named.
    """
    names = tuple(models)
    trees.check_same_structure(list(models.values()), names)
    check_finite(models)
    split = [trees.partition(params, list(shared)) for params in models.values()]
    common = trees.flatten(split[0][0])
    differing = [
        f"{leaf} ({name})"
        for name, (other, _) in zip(names[1:], split[1:], strict=True)
        for leaf, value in trees.flatten(other).items()
        if value is not common[leaf] and not bool(jnp.array_equal(value, common[leaf]))
    ]
    if differing:
        raise ValueError(
            f"shared leaves differ between points: {', '.join(differing[:12])}; they "
            "were trained, so take them out of `shared`"
        )
    stacked = trees.stack([rest for _, rest in split], names)
    trees.match_rules(groups, trees.flatten(stacked), what="groups")
    rules = tuple((pattern, group) for pattern, group in groups)
    return Points(names, stacked, split[0][0], rules)


def check_finite(models: Mapping[str, Params]) -> None:
    """Raises `ValueError` naming every leaf that holds NaN or infinity."""
    bad = [
        f"{name}: {leaf}"
        for name, params in models.items()
        for leaf, value in trees.flatten(params).items()
        if jnp.issubdtype(jnp.asarray(value).dtype, jnp.floating)
        and not bool(jnp.isfinite(jnp.sum(jnp.abs(value), dtype=jnp.float32)))
    ]
    if bad:
        more = f" and {len(bad) - 12} more" if len(bad) > 12 else ""
        raise ValueError(
            f"values that are not finite in {'; '.join(bad[:12])}{more}: training "
            "diverged or the file is damaged; leave the model out or train it again "
            "with a smaller learning rate"
        )
