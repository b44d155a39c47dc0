"""By which stated rules a task is left out of a study."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.transfer.terms import count_terms

COVERED = 0.7
"""Common terms are the most frequent of the other tasks, up to this share of them."""


class Rules(NamedTuple):
    """When a task is left out, by a reason that is told.

    Attributes:
      rows: fewer distinct texts than this.
      unknown: a larger share of tokens that the tokenizer does not know.
      garbled: a larger share of characters that are replacement or control ones: files
        read in another encoding than they were written in.
      common: a smaller share of tokens that are common terms of the other tasks:
        another language. Of reviews in English 0.5 is the least we have seen, of
        German and French among them 0.23 the most. Not asked of fewer than three
        tasks, of which none could be told to be the odd one; 0 = never.
    """

    rows: int = 8
    unknown: float = 0.1
    garbled: float = 0.01
    common: float = 0.35


def garbled(texts: Iterable[str]) -> tuple[int, int]:
    """How many characters no text holds, and how many there are."""
    counts = Counter(character for text in texts for character in text)
    bad = sum(
        count
        for character, count in counts.items()
        if character == "\ufffd"
        or (unicodedata.category(character) == "Cc" and not character.isspace())
    )
    return bad, counts.total()


def foreign(
    found: Mapping[str, Sequence[np.ndarray]], unknown: int | None, rules: Rules
) -> dict[str, str]:
    """Tasks of other terms than the rest, and why.

    Args:
      found: name -> token ids of each text.
      unknown: id of the sign for what the tokenizer does not know.
      rules: of which `common` is read.
    """
    if len(found) < 3 or not rules.common:
        return {}
    shares = {}
    total: Counter[int] = Counter()
    for name, texts in found.items():
        counts = count_terms([ids.tolist() for ids in texts])
        tokens = counts.total()
        if unknown is not None:  # That sign is common to nobody.
            counts.pop(unknown, 0)
        # Each task counts the same, whatever it has read.
        shares[name] = {term: n / tokens for term, n in counts.items()}
        total.update(shares[name])
    reasons = {}
    for name, own in shares.items():
        others = {term: n - own.get(term, 0) for term, n in total.items()}
        limit, covered, common = COVERED * sum(others.values()), 0.0, 0.0
        for term in sorted(others, key=lambda term: (-others[term], term)):
            if covered >= limit:
                break
            covered += others[term]
            common += own.get(term, 0)
        if common < rules.common:
            reasons[name] = (
                f"{common:.0%} of its tokens are common terms of the other tasks, "
                f"fewer than {rules.common:.0%}: another language; compare tasks of "
                "one language"
            )
    return reasons
