"""What a table of measures says of each."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A divergence between two tasks; smaller is closer.

    Attributes:
      function: `(source, target, **options) -> scalar` on what it reads, traced: under
        jit and vmap.
      reads: 'terms', a distribution over words [V]; 'presence', which of them occur;
        'tfidf', mean weighted counts; 'sample', vectors of texts [n, D]; 'moments',
        their mean and covariance, a `moments.Moments`.
      symmetric: whether it is the same both ways.
      promises: of 'zero' (on identical input), 'positive' (never below 0),
        'duplication' (a sample twice over changes nothing), 'rotation' (nor does one
        rotation of both).
      reference: author, year, identifier.
    """

    function: Callable[..., Any]
    reads: str
    symmetric: bool
    promises: frozenset[str]
    reference: str
