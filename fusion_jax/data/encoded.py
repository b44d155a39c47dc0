"""A split as token ids, with what turns a model's outputs back into answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """One split of a task, tokenised; N rows that stand for the split's items.

    Attributes:
      task_name: name of the task.
      kind: kind of the task.
      num_labels: C of the task; the most candidates of a row for choice.
      columns: name -> N arrays [T] int32 of the row's own length: input_ids and
        token_type_ids; tags (token); choice_ids (choice); context_mask (span).
      targets: name -> array [N, ...]: label; labels [N, C]; choice_mask [N, C];
        start and end.
      lengths: [N] tokens of each row.
      items: [N] item of each row. A long span context makes several rows of one item;
        every other kind has one row an item.
      references: for each item the answer that metrics compare with: class id; tuple
        of class ids; {'tags': tag id of every word}; {'answers': strings}.
      pad_token_id: what input_ids are padded with.
      labels: class names.
      unscored: class ids that metrics leave out.
      decision: decision rule of a multi-label task.
      token_words: (token) N arrays [T]: the word whose first token this is, else -1.
      offsets: (span) N arrays [T, 2]: characters of each token in its item's text.
      texts: (span) the context of each item.
      features: (a head on a frozen encoder) N arrays of hidden states, [D] of the one
        token that the head reads, or [T, D]. They follow from the rest and the
        encoder, and are no part of `hash_encoded`.
    """

    task_name: str
    kind: str
    num_labels: int
    columns: Mapping[str, Sequence[np.ndarray]] = field(repr=False)
    targets: Mapping[str, np.ndarray] = field(repr=False)
    lengths: np.ndarray = field(repr=False)
    items: np.ndarray = field(repr=False)
    references: Sequence[Any] = field(repr=False)
    pad_token_id: int = 0
    labels: tuple[str, ...] = ()
    unscored: tuple[int, ...] = ()
    decision: str = ""
    token_words: Sequence[np.ndarray] = field(default=(), repr=False)
    offsets: Sequence[np.ndarray] = field(default=(), repr=False)
    texts: Sequence[str] = field(default=(), repr=False)
    features: Sequence[np.ndarray] = field(default=(), repr=False)

    def __len__(self) -> int:
        """N, the number of rows."""
        return len(self.lengths)

    @property
    def trainable(self) -> np.ndarray:
        """Row numbers that hold a target: windows without the answer do not."""
        if self.kind == "span":
            return np.flatnonzero(self.targets["start"] >= 0)
        return np.arange(len(self))

    def take(self, rows: np.ndarray) -> "Encoded":
        """The rows named, in that order; items and references stay whole."""
        rows = np.asarray(rows)
        return replace(
            self,
            columns={name: [x[i] for i in rows] for name, x in self.columns.items()},
            targets={name: x[rows] for name, x in self.targets.items()},
            lengths=self.lengths[rows],
            items=self.items[rows],
            token_words=[self.token_words[i] for i in rows] if self.token_words else (),
            offsets=[self.offsets[i] for i in rows] if self.offsets else (),
            features=[self.features[i] for i in rows] if self.features else (),
        )


def hash_encoded(encoded: Encoded) -> str:
    """Sha256 of all that training and scoring see of a split, in hexadecimal.

    Token ids are part of it: another tokenizer or another length is another split.
    """
    head = {
        "kind": encoded.kind,
        "labels": encoded.labels,
        "num_labels": encoded.num_labels,
        "unscored": encoded.unscored,
        "decision": encoded.decision,
        "pad_token_id": encoded.pad_token_id,
        "references": encoded.references,
        "texts": encoded.texts,
    }
    digest = hashlib.sha256(json.dumps(head, default=_plain).encode())
    digest.update(np.asarray(encoded.items, np.int64).tobytes())
    ragged = {
        **encoded.columns,
        "token_words": encoded.token_words,
        "offsets": encoded.offsets,
    }
    for name in sorted(ragged):
        digest.update(f"\n{name}\n".encode())
        for row in ragged[name]:
            digest.update(np.int64(len(row)).tobytes())
            digest.update(np.ascontiguousarray(row, np.int64).tobytes())
    for name in sorted(encoded.targets):
        values = np.ascontiguousarray(encoded.targets[name])
        digest.update(f"\n{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Arrays and numpy numbers as JSON knows them."""
    return np.asarray(value).tolist()
