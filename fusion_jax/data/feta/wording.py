"""Tokens back to written text, with the place of each token in it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

_CLOSES = re.compile(r"[.,:;?!%)\]}…]+|''|n't|'(s|m|re|ve|ll|d|t|clock|all|em)?")
_OPENS = frozenset({"(", "[", "{", "$", "``", "#"})
# Contractions that tokenisers cut in two: 'gon na', 'wan na', 'got ta', 'can not'.
_HALVES = frozenset(
    {
        ("gon", "na"),
        ("wan", "na"),
        ("got", "ta"),
        ("can", "not"),
        ("gim", "me"),
        ("lem", "me"),
        ("c'm", "on"),
        ("y'", "know"),
    }
)


class Words(NamedTuple):
    """A tokenised utterance as people write it.

    Attributes:
      tokens: the tokens.
      text: the written text.
      offsets: (begin, end) of each token in `text`.
    """

    tokens: tuple[str, ...]
    text: str
    offsets: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokens: Sequence[str]) -> "Words":
        """Joins tokens: no blank before closing marks or after opening ones."""
        text, offsets, previous = "", [], ""
        for token in tokens:
            if text and not _sticks(previous, token):
                text += " "
            offsets.append((len(text), len(text) + len(token)))
            text, previous = text + token, token
        return cls(tuple(tokens), text, tuple(offsets))

    def find(self, wanted: Sequence[str]) -> tuple[int, int] | None:
        """First and last token of the first place where `wanted` stands, or None."""
        width = len(wanted)
        if not width:
            return None
        for first in range(len(self.tokens) - width + 1):
            if self.tokens[first : first + width] == tuple(wanted):
                return first, first + width - 1
        return None


def _sticks(previous: str, token: str) -> bool:
    return (
        previous in _OPENS
        or _CLOSES.fullmatch(token) is not None
        or (previous.lower(), token.lower()) in _HALVES
    )
