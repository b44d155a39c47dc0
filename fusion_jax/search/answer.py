"""The answer of a search: its mean, unless another is better by a standard error."""

from collections.abc import Mapping
from typing import NamedTuple

from fusion_jax.evaluation.bootstrap import paired_difference
from fusion_jax.evaluation.scoring import Scores


class Answer(NamedTuple):
    """What was chosen and against what.

    Attributes:
      name: of the chosen candidate.
      advantages: name -> (dev score minus the mean's, its standard error).
    """

    name: str
    advantages: dict[str, tuple[float, float]]


def choose(scores: Mapping[str, Scores], preferred: str = "mean") -> Answer:
    """Takes the preferred candidate unless another beats it by a standard error.

    The best of many noisy dev scores is optimistic, the distribution's mean is not;
    so the mean is taken unless some other candidate's paired advantage on the dev
    items exceeds its bootstrap standard error. Of several such, the one with the
    largest advantage is taken, the first named among equals.

    Args:
      scores: name -> scores on the whole dev set; `preferred` is among them.
      preferred: the name that wins by default.

    Returns:
      The answer.
    """
    advantages = {}
    for name, score in scores.items():
        if name != preferred:
            difference = paired_difference(score, scores[preferred])
            advantages[name] = (
                float(difference.mean),
                float(difference.standard_error),
            )
    better = {
        name: gain
        for name, (gain, error) in advantages.items()
        if gain > 0 and gain > error
    }
    name = max(better, key=lambda n: better[n]) if better else preferred
    return Answer(name, advantages)
