"""What the table of merges says of each method."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fusion_jax.merging.form import Form

PROMISES: dict[str, str] = {
    "one_hot": "one-hot coefficients return that expert",
    "equal_experts": "equal experts with coefficients of sum one return themselves",
    "permutation": "a joint permutation of experts and coefficients changes nothing",
    "base_at_zero": "zero coefficients return the base",
    "scale_free": "a multiple of the coefficients changes nothing",
    "shift": "adding one tree to the base and all experts adds it to the result",
}
"""Properties a method can promise; tests sweep over them."""


class Merge(NamedTuple):
    """A merge and what a caller, a test or a command must know of it.

    Attributes:
      function: `(stack, coefficients, *, base=None, key=None, groups=None, **options)
        -> Params`, or a NamedTuple whose first field is the Params.
      reference: authors, year, arXiv number.
      needs: of 'base', 'key', 'statistics': what must be given besides.
      accepts: of the same: what may be given.
      promises: of `PROMISES`, at the method's default options.
      leafwise: every leaf of the result depends on that leaf of the inputs alone, at
        the default options.
      differentiable: gradients by coefficients and stack are finite and those of the
        formula; False for methods of sorts, assignments and decompositions.
      experts: least and most K; None where there is no most.
      form: the method as a `Form`, from those of its options that are words or flags;
        None where it needs whole models at once.
      weights: whether coefficients count at all (a median has none).
    """

    function: Callable[..., Any]
    reference: str
    needs: frozenset[str] = frozenset()
    accepts: frozenset[str] = frozenset()
    promises: frozenset[str] = frozenset()
    leafwise: bool = True
    differentiable: bool = True
    experts: tuple[int, int | None] = (1, None)
    form: Callable[..., Form] | None = None
    weights: bool = True
