"""The table of ways to merge modules: tests sweep it, commands look names up in it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fusion_jax.merging.table import MERGES
from fusion_jax.peft import combine_leaves as leaves
from fusion_jax.peft import combine_updates as updates

_OURS = ("parts", "leaves", "weights", "neutral", "method", "key", "options")
_MERGE = ("stack", "coefficients", "base", "key", "groups", "statistics", "trim_scope")


class Combine(NamedTuple):
    """A way to merge modules.

    Attributes:
      reference: authors, year, arXiv number, or whose rule it is.
      update: for low-rank updates of one layer, `(parts, weights, **options) ->
        (Factors, lost)`; None where it has none.
      leaf: for any other leaf, `(leaves, weights, neutral, **options) -> array`.
      leaf_kinds: the kinds whose leaves `leaf` serves.
      exact: whether the merged update is the weighted sum of the updates, uncut.
      ratios: whether only ratios of the weights count.
      key: whether it draws random masks.
      options: names of its numbers and words.
    """

    reference: str
    update: Callable[..., updates.Merged] | None = None
    leaf: Callable[..., Any] | None = None
    leaf_kinds: tuple[str, ...] = ()
    exact: bool = False
    ratios: bool = False
    key: bool = False
    options: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of modules that can be merged so."""
        return (*(("lora",) if self.update else ()), *self.leaf_kinds)


def _own(*functions: Callable[..., Any]) -> tuple[str, ...]:
    names = [name for f in functions for name in inspect.signature(f).parameters]
    return tuple(dict.fromkeys(name for name in names if name not in _OURS))


def _of_merges(name: str, *, ratios: bool) -> Combine:
    """A merge of the table `MERGES`, on what modules change."""
    merge = MERGES[name]
    numbers = inspect.signature(merge.function).parameters
    return Combine(
        update=functools.partial(updates.merged_updates, name),
        leaf=functools.partial(leaves.merged_changes, name),
        leaf_kinds=("ia3",),
        ratios=ratios,
        key="key" in merge.needs,
        options=(
            "rank",
            "energy",
            *(name for name in numbers if name not in (*_MERGE, "exempt_vectors")),
        ),
        reference=merge.reference,
    )


COMBINES: Mapping[str, Combine] = {
    "concatenate": Combine(
        update=updates.concatenate,
        exact=True,
        reference="huggingface/peft, combination type 'cat'",
    ),
    "svd": Combine(
        update=updates.svd,
        options=_own(updates.svd),
        reference="Eckart and Young 1936; huggingface/peft, combination type 'svd'",
    ),
    "knots": Combine(
        update=updates.knots_updates,
        ratios=True,
        options=_own(updates.knots_updates),
        reference=MERGES["knots"].reference,
    ),
    "ties": _of_merges("ties", ratios=True),
    "dare": _of_merges("dare", ratios=False),
    "dare_ties": _of_merges("dare_ties", ratios=True),
    "linear": Combine(
        leaf=leaves.linear,
        leaf_kinds=("ia3", "adapter", "compacter", "prefix", "prompt", "bitfit"),
        reference="huggingface/peft and AdapterHub, weighted sums of (IA)^3 and others",
    ),
    "linear_factors": Combine(
        update=updates.linear_factors,
        leaf=leaves.weighted_sum,
        leaf_kinds=("ia3",),
        reference="huggingface/peft, combination type 'linear'; Huang et al. 2023, "
        "arXiv:2307.13269",
    ),
}
"""name -> how modules are merged by it."""
