"""Comparing answers as strings: exact match and the F1 of their words."""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single blanks.

    Reference: Rajpurkar et al., 2016, arXiv 1606.05250 (the evaluation script).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


class Comparison(NamedTuple):
    """One predicted string against its gold strings.

    Attributes:
      exact: 1.0 if it equals a gold string after `normalise`.
      f1: the largest F1 of the bags of words over the gold strings.
      common: words in common with the gold string of that F1.
      predicted: words of the prediction.
      gold: words of that gold string.
    """

    exact: float
    f1: float
    common: int
    predicted: int
    gold: int


def compare(predicted: str, golds: Sequence[str]) -> Comparison:
    """Exact match and token F1, the best over the gold strings.

    f1 = 2 common / (predicted + gold); 1 where both are empty, 0 where one is. Of
    equal F1 the first gold string counts.
    """
    words = _words(predicted)
    counts = Counter(words)
    best = None
    exact = 0.0
    for gold in golds:
        gold_words = _words(gold)
        if counts.keys().isdisjoint(gold_words):
            common = 0
        else:
            common = (counts & Counter(gold_words)).total()
        total = len(words) + len(gold_words)
        f1 = 2 * common / total if total else 1.0
        exact = max(exact, float(gold_words == words))
        if best is None or f1 > best[0]:
            best = (f1, common, len(gold_words))
    # No gold string at all: the answer is to say nothing.
    f1, common, length = best or (float(not words), 0, 0)
    return Comparison(
        exact if golds else float(not words), f1, common, len(words), length
    )


# A search compares hundreds of candidates with the same gold strings.
@functools.lru_cache(maxsize=2**15)
def _words(text: str) -> tuple[str, ...]:
    return tuple(normalise(text).split())
