"""Entities in BIO tags, read as the conlleval script reads them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Scheme(NamedTuple):
    """What each tag id says.

    Attributes:
      kind: [C] int, index of the entity type; -1 for 'O'.
      begins: [C] bool, the tag opens an entity whatever stands before it.
    """

    kind: np.ndarray
    begins: np.ndarray


def read_scheme(labels: Sequence[str]) -> Scheme:
    """The scheme of a task's label names.

    Raises:
      ValueError: a name is neither 'O' nor 'B-type' nor 'I-type'; all are listed.
    """
    wrong = [x for x in labels if x != "O" and x[:2] not in ("B-", "I-")]
    if wrong:
        raise ValueError(
            f"f1_span reads BIO tags, but the labels {wrong} are neither 'O' nor "
            "'B-type' nor 'I-type'; use accuracy or f1_macro for plain tags"
        )
    names = sorted({x[2:] for x in labels if x != "O"})
    kind = np.array([names.index(x[2:]) if x != "O" else -1 for x in labels], np.int64)
    return Scheme(kind, np.array([x[:2] == "B-" for x in labels], bool))


def find_entities(
    tags: np.ndarray, first: np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where entities start and end, for many sequences laid end to end.

    An entity starts at B-x, and at I-x where no entity of type x runs (after O, after
    another type, at the start of a sequence). It ends before the next start, the next
    O or the end of its sequence.

    Args:
      tags: [..., W] int tag ids.
      first: [W] bool, the word opens its sequence.
      scheme: of `read_scheme`.

    Returns:
      starts [..., W] bool; ends [..., W] int, one past the last word of the entity
      that starts there (undefined elsewhere); kinds [..., W] int.
    """
    kinds = scheme.kind[tags]
    before = np.concatenate([np.full_like(kinds[..., :1], -1), kinds[..., :-1]], -1)
    inside = kinds >= 0
    starts = inside & (scheme.begins[tags] | first | (before != kinds))
    # The next word at which nothing that ran before goes on.
    length = tags.shape[-1]
    stops = np.where(starts | ~inside | first, np.arange(length), length)
    following = np.minimum.accumulate(stops[..., ::-1], axis=-1)[..., ::-1]
    ends = np.concatenate(
        [following[..., 1:], np.full_like(following[..., :1], length)], axis=-1
    )
    return starts, ends, kinds


def count_entities(
    gold: np.ndarray, predicted: np.ndarray, first: np.ndarray, scheme: Scheme
) -> np.ndarray:
    """Right, predicted and gold entities that start at each word: [..., W, 3] bool.

    An entity is right when first word, last word and type agree.
    """
    gold_starts, gold_ends, gold_kinds = find_entities(gold, first, scheme)
    starts, ends, kinds = find_entities(predicted, first, scheme)
    right = starts & gold_starts & (ends == gold_ends) & (kinds == gold_kinds)
    return np.stack(
        [right, starts, np.broadcast_to(gold_starts, starts.shape)], axis=-1
    )
