"""What a table of measures says of each."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Known(NamedTuple):
    """A task with what `Measure.prepare` says of it alone.

    Attributes:
      task: what the measure reads.
      own: what was prepared.
    """

    task: Any
    own: Any


class Measure(NamedTuple):
    """A divergence between two tasks; smaller is closer.

    Attributes:
      function: `(source, target, **options) -> scalar` on what it reads, or, with
        `prepare`, on a `Known` of each; traced.
      reads: 'terms', a distribution over words [V]; 'presence', which of them occur;
        'tfidf', mean weighted counts; 'sample', vectors of texts [n, D]; 'moments',
        their mean and covariance, a `moments.Moments`; 'module', a vector of
        parameters [P].
      symmetric: whether it is the same both ways.
      promises: of 'zero' (on identical input), 'positive' (never below 0),
        'duplication' (a sample twice over changes nothing), 'rotation' (nor does one
        rotation of both).
      reference: author, year, identifier.
      prepare: `(task, **options) -> tree`, the part of the work that is of one task
        alone: done N times, not N^2; None = there is none. What it only passes on is
        left in `Known.task`, which measures share.
    """

    function: Callable[..., Any]
    reads: str
    symmetric: bool
    promises: frozenset[str]
    reference: str
    prepare: Callable[..., Any] | None = None
