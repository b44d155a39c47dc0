"""What an encoder reads of a row: segment A, segment B, and which side is cut."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.data.task import Row

# A context of fewer tokens than this says nothing; the text is then read alone.
LEAST_CONTEXT = 8


class Segments(NamedTuple):
    """Input of one row.

    Attributes:
      first: segment A, the text.
      second: segment B, or None.
      is_context: B is earlier text, of which the newest part is kept.
    """

    first: str
    second: str | None
    is_context: bool


class Pieces(NamedTuple):
    """Tokens of a text, or of a whole input.

    Attributes:
      ids: [T] int32.
      offsets: [T, 2] int32, characters of each token in its own text; (0, 0) for a
        special token.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def part(self, start: int, stop: int | None) -> "Pieces":
        """The tokens [start, stop)."""
        return Pieces(self.ids[start:stop], self.offsets[start:stop])


class Input(NamedTuple):
    """Tokens of one row with its special ones.

    Attributes:
      ids: [T] int32.
      type_ids: [T] int32.
      side: [T] int32: 0 in A, 1 in B, -1 for special tokens.
      offsets: [T, 2] int32 in the text of A or B.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    side: np.ndarray
    offsets: np.ndarray


class Layout:
    """Where a tokenizer puts its special tokens: around one text, and around two."""

    def __init__(self, tokenizer: Any):
        """Learns the layout from two words; nothing of the tokenizer is changed."""
        self._frames = {
            False: _frame(tokenizer("a", verbose=False).encodings[0]),
            True: _frame(tokenizer("a", "a", verbose=False).encodings[0]),
        }

    def special(self, pair: bool) -> int:
        """How many special tokens stand around one text, or two."""
        return sum(len(ids) for ids, _ in self._frames[pair][0])

    def join(self, *texts: Pieces) -> Input:
        """One or two texts with the special tokens around them."""
        gaps, types = self._frames[len(texts) > 1]
        ids, type_ids, side, offsets = [], [], [], []
        for number in range(len(gaps)):
            special, special_types = gaps[number]
            ids.append(special)
            type_ids.append(special_types)
            side.append(np.full(len(special), -1, np.int32))
            offsets.append(np.zeros((len(special), 2), np.int32))
            if number < len(texts):
                text = texts[number]
                ids.append(text.ids)
                type_ids.append(np.full(len(text.ids), types[number], np.int32))
                side.append(np.full(len(text.ids), number, np.int32))
                offsets.append(text.offsets)
        return Input(*map(np.concatenate, (ids, type_ids, side, offsets)))


def of_row(row: Row, separator: str) -> Segments:
    """A = text, B = text_pair or context; with both, A = 'text [SEP] text_pair'."""
    text, pair, context = row["text"], row.get("text_pair"), row.get("context")
    if not context:
        return Segments(text, pair, False)
    if pair is not None:
        text = f"{text} {separator} {pair}"
    return Segments(text, context, True)


def with_choices(row: Row, separator: str) -> Segments:
    """The same, with the candidates before the text: 'x or y or z [SEP] text'.

    So every candidate is mentioned, however much of the context is cut.
    """
    first, second, is_context = of_row(row, separator)
    listed = " or ".join(row["choices"])
    return Segments(f"{listed} {separator} {first}", second, is_context)


def tokenise(texts: Sequence[str], tokenizer: Any) -> dict[str, Pieces]:
    """Tokens of each distinct text, uncut and without special tokens.

    Rows of one dialogue share their context: each is tokenised once.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    encodings = tokenizer(
        distinct, add_special_tokens=False, truncation=False, verbose=False
    ).encodings
    return {
        text: Pieces(
            np.asarray(e.ids, np.int32),
            np.asarray(e.offsets, np.int32).reshape(-1, 2),
        )
        for text, e in zip(distinct, encodings, strict=True)
    }


def fit(segments: Sequence[Segments], tokenizer: Any, max_length: int) -> list[Input]:
    """Inputs of at most `max_length` tokens.

    A context is cut from its left until the row fits; a text that leaves it no room is
    read alone. A text is cut from its right, of two the longer first.
    """
    layout = Layout(tokenizer)
    texts = [t for s in segments for t in (s.first, s.second) if t is not None]
    pieces = tokenise(texts, tokenizer)
    inputs = []
    for segment in segments:
        first = pieces[segment.first]
        if segment.second is not None:
            second = pieces[segment.second]
            room = max_length - layout.special(pair=True)
            if not segment.is_context:
                a, b = _share(len(first.ids), len(second.ids), room)
                inputs.append(layout.join(first.part(0, a), second.part(0, b)))
                continue
            if len(first.ids) + LEAST_CONTEXT <= room:
                start = max(0, len(second.ids) - (room - len(first.ids)))
                inputs.append(layout.join(first, second.part(start, None)))
                continue
        room = max_length - layout.special(pair=False)
        inputs.append(layout.join(first.part(0, room)))
    return inputs


def windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    tokenizer: Any,
    max_length: int,
    stride: int,
) -> tuple[list[Input], list[int]]:
    """A question with each window of its context.

    A question is cut to half of `max_length`; neighbouring windows share `stride`
    tokens.

    Returns:
      Inputs, and the number of the question of each.

    Raises:
      ValueError: `stride` leaves a window nothing new.
    """
    layout = Layout(tokenizer)
    pieces = tokenise([*questions, *contexts], tokenizer)
    inputs, items = [], []
    for item, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        first = pieces[question].part(0, max_length // 2)
        second = pieces[context]
        room = max_length - layout.special(pair=True) - len(first.ids)
        if not 0 <= stride < room:
            raise ValueError(
                f"stride={stride} must lie between 0 and {room - 1}, the room that a "
                f"question of {len(first.ids)} tokens leaves in max_length={max_length}"
            )
        start = 0
        while True:
            inputs.append(layout.join(first, second.part(start, start + room)))
            items.append(item)
            if start + room >= len(second.ids):
                break
            start += room - stride
    return inputs, items


def _share(a: int, b: int, room: int) -> tuple[int, int]:
    """Lengths of two texts cut to `room` tokens in all, the longer first."""
    if a + b <= room:
        return a, b
    short = min(a, b, room // 2)
    return (short, room - short) if a <= b else (room - short, short)


def _frame(
    encoding: Any,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[int]]:
    """Special tokens (ids, type ids) around the texts, and the type of each text."""
    sides = encoding.sequence_ids
    ids, type_ids = np.asarray(encoding.ids), np.asarray(encoding.type_ids)
    edges = [0]
    types = []
    for number in sorted({s for s in sides if s is not None}):
        inside = [i for i, s in enumerate(sides) if s == number]
        edges += [inside[0], inside[-1] + 1]
        types.append(int(type_ids[inside[0]]))
    edges.append(len(ids))
    gaps = [
        (ids[a:b].astype(np.int32), type_ids[a:b].astype(np.int32))
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]
    return gaps, types
