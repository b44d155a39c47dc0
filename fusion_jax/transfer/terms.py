"""Tasks as distributions over terms: what is counted, smoothed, and compared."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SMOOTHING = 0.01
"""Added to every count: without it a word that one side lacks makes KL infinite."""


def count_terms(texts: Iterable[Sequence[int]], budget: int = 0) -> Counter[int]:
    """How often each token id occurs.

    Args:
      texts: token ids of each text, without special tokens.
      budget: tokens that are counted, from the first text on; 0 = all. Measures on
        vocabularies depend on how much was read: give all tasks the same.
    """
    counts: Counter[int] = Counter()
    read = 0
    for ids in texts:
        taken = ids[: budget - read] if budget else ids
        counts.update(taken)
        read += len(taken)
        if budget and read >= budget:
            break
    return counts


def vocabulary(counts: Iterable[Mapping[int, int]], size: int = 10_000) -> list[int]:
    """The most frequent terms of all tasks together, one list for the whole study.

    Args:
      counts: of each task.
      size: terms at most.

    Returns:
      Term ids, the most frequent first; of equally frequent ones the smaller id first.
    """
    total: Counter[int] = Counter()
    for one in counts:
        total.update(one)
    return sorted(total, key=lambda term: (-total[term], term))[:size]


def distribution(
    counts: Mapping[int, int], terms: Sequence[int], smoothing: float = SMOOTHING
) -> np.ndarray:
    """P = (c + eps) / sum(c + eps), [V] float64.

    Args:
      counts: of a task.
      terms: the study's vocabulary.
      smoothing: eps, which is part of what KL means here.

    Raises:
      ValueError: no term of the vocabulary occurs: such a task would look like the
        uniform distribution, near to everybody.
    """
    found = np.array([counts.get(term, 0) for term in terms], np.float64)
    if not found.sum():
        raise ValueError(
            f"none of the {len(terms)} terms of the vocabulary occurs in "
            f"{sum(counts.values())} tokens: empty texts, or another language than "
            "the other tasks'; leave the task out"
        )
    smoothed = found + smoothing
    return smoothed / smoothed.sum()


def presence(counts: Mapping[int, int], terms: Sequence[int]) -> np.ndarray:
    """1 for each term that occurs, [V] float64: what `vocabulary_overlap` reads."""
    return np.array([term in counts for term in terms], np.float64)


def inverse_document_frequency(
    texts: Iterable[Sequence[int]], terms: Sequence[int]
) -> np.ndarray:
    """log((1 + n) / (1 + df)) + 1 over the texts of all tasks, [V] float64.

    The smoothed form of scikit-learn, so that a term of no text has no infinite weight.
    """
    place = {term: i for i, term in enumerate(terms)}
    frequency = np.zeros(len(terms))
    number = 0
    for ids in texts:
        number += 1
        for term in set(ids):
            if term in place:
                frequency[place[term]] += 1
    return np.log((1 + number) / (1 + frequency)) + 1
