"""What the table of merges says of each method."""

from collections.abc import Callable
from typing import NamedTuple

from fusion_jax.types import Params


class Merge(NamedTuple):
    """A merge and what a caller, a test or a command must know of it.

    Attributes:
      function: `(stack, coefficients, *, base=None, key=None, **hyper) -> Params`.
      needs: of 'base', 'key', 'statistics': what must be given besides.
      leafwise: every leaf of the result depends on that leaf of the inputs alone.
      promises: properties that the method keeps and that tests sweep over:
        'one_hot' (one-hot coefficients return that expert), 'equal_experts' (equal
        experts with coefficients of sum one return themselves), 'permutation' (a
        joint permutation of experts and coefficients changes nothing),
        'base_at_zero' (zero coefficients return the base).
      differentiable: gradients by coefficients and stack are those of the formula.
      reference: authors, year, arXiv number.
    """

    function: Callable[..., Params]
    needs: frozenset[str]
    leafwise: bool
    promises: frozenset[str]
    differentiable: bool
    reference: str
