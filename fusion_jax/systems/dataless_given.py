"""What a method of a dataless fusion is given, and what it gives."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.in_process import merge_arrays
from fusion_jax.config import Config
from fusion_jax.merging.label_heads import merge_label_columns
from fusion_jax.systems.dataless_members import Member, owners_of
from fusion_jax.types import Params

Leaves = dict[str, np.ndarray]

_BY_LABEL = r"classifier/.*"  # leaves of a head with a column for each label


class Variant(NamedTuple):
    """One merged model.

    Attributes:
      chosen: the options that tell it from the method's other variants.
      encoder: merged {'encoder': ...}.
      head: merged head; None where every task keeps its own.
      layers: leaf -> 'regressed' or 'averaged', of methods that do either.
    """

    chosen: dict[str, float]
    encoder: Params
    head: Params | None
    layers: Mapping[str, str] = {}

    def params_for(self, member: Member) -> Params:
        """The model for a member's task."""
        head = member.params["head"] if self.head is None else self.head
        return {"encoder": self.encoder["encoder"], "head": head}


@dataclass(frozen=True)
class Fusion:
    """What a method is given.

    Attributes:
      members: K owners with their models.
      base: theta_0, {'encoder': ...}.
      shared_labels: whether heads have one label space and are merged too.
      options: of the run.
    """

    members: Sequence[Member]
    base: Params = field(repr=False)
    shared_labels: bool
    options: Config

    @property
    def coefficients(self) -> np.ndarray:
        """[K], all equal: Grams and Fishers are means over their own rows."""
        return np.full(len(self.members), 1 / len(self.members))

    @functools.cached_property
    def encoders(self) -> dict[str, Leaves]:
        """Member -> encoder leaves, on the host."""
        return {
            member.name: host({"encoder": member.params["encoder"]})
            for member in self.members
        }

    @functools.cached_property
    def base_leaves(self) -> Leaves:
        """Encoder leaves of theta_0 that the members have too."""
        first = next(iter(self.encoders.values()))
        leaves = host({"encoder": self.base["encoder"]})
        return {name: leaves[name] for name in first}

    def merge_heads(self, merge: Callable[..., Params]) -> Params | None:
        """The heads by label: each column by those members whose rows have the label.

        Layers of a head that come before its classifier, and heads without labels,
        are merged over all members.

        Args:
          merge: `(heads [k, ...], coefficients [k], members [k]) -> head`.
        """
        if not self.shared_labels:
            return None
        heads = trees.stack(
            [jax.tree.map(np.asarray, m.params["head"]) for m in self.members]
        )
        by_label, others = trees.partition(heads, _BY_LABEL)
        everyone = tuple(range(len(self.members)))
        parts = []
        if others:
            parts.append(merge(others, self.coefficients, everyone))
        if by_label:
            owners = owners_of(self.members)
            parts.append(
                merge_label_columns(merge, by_label, self.coefficients, owners)
            )
        return trees.combine(*parts)

    @functools.cached_property
    def averaged(self) -> Leaves:
        """The mean of the encoders."""
        return merge_arrays(self.encoders, "weighted_average", list(self.coefficients))

    @functools.cached_property
    def average_head(self) -> Params | None:
        """The heads averaged by label."""
        return self.merge_heads(mean_of)


def mean_of(stack: Params, row: Any, indices: Sequence[int]) -> Params:
    """The mean by the ratios of the row, in float64."""
    del indices
    weights = np.asarray(row, np.float64)
    weights = weights / weights.sum()
    return jax.tree.map(
        lambda x: np.einsum("k,k...->...", weights, np.asarray(x)).astype(x.dtype),
        stack,
    )


def host(tree: Params) -> Leaves:
    """Leaves by name, in numpy."""
    return {name: np.asarray(x) for name, x in trees.flatten(tree).items()}


def flat(tree: Params) -> Leaves:
    """Leaves by name, as they are."""
    return dict(trees.flatten(tree))
