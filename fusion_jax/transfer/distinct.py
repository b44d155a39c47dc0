"""The distinct texts of a task, in an order that is their own."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_jax.data.segments import Segments, of_row
from fusion_jax.data.task import Task, target_labels
from fusion_jax.transfer.exclusion import Rules, garbled

Terms = tuple[np.ndarray, ...]
"""Token ids of texts, uncut and without special tokens."""

_TEXTS_AT_ONCE = 128


def distinct_texts(
    task: Task, separator: str, split: str, rules: Rules, seed: int
) -> list[Segments] | str:
    """The distinct texts of a split, or why the task is left out.

    A text that occurs twice counts once, whatever its case and blanks. Texts come in
    the order of a seeded hash of themselves: neither the order of rows nor the name of
    a task says which are drawn, and two tasks of the same texts give the same. Labels
    are looked at to count classes and for nothing else.

    Args:
      task: the task.
      separator: between two texts of a row that has a context, too.
      split: that is read.
      rules: `rows` and `garbled`.
      seed: of the hash.
    """
    if split not in task.splits:
        return f"no {split} split, only {', '.join(task.splits)}"
    rows = task.splits[split]
    classes = {c for row in rows for c in target_labels(task.kind, row.get("target"))}
    if task.labels and len(classes) < 2:
        one = "".join(task.labels[c] for c in classes) or "none"
        return f"one class alone ({one}) in {len(rows)} rows; nothing to tell apart"
    found: dict[str, Segments] = {}
    empty = 0
    for row in rows:
        segments = of_row(row, separator)
        plain = " ".join(" ".join(parts(segments)).split()).casefold()
        empty += not plain
        if plain:
            found.setdefault(plain, segments)
    if len(found) < rules.rows:
        return (
            f"{len(found)} distinct texts in {len(rows)} rows, of which {empty} are "
            f"empty; at least {rules.rows} are needed"
        )
    bad, characters = garbled(found)
    if bad > rules.garbled * characters:
        return (
            f"{bad} of {characters} characters are replacement or control ones: the "
            "files were written in another encoding; write them as UTF-8"
        )
    order = sorted(
        found, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest()
    )
    return [found[text] for text in order]


def term_ids(texts: Sequence[Segments], tokenizer: Any, limit: int) -> Terms:
    """Token ids of the first texts, until they are `limit` tokens; 0 = of all."""
    found: list[np.ndarray] = []
    tokens = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        encodings = tokenizer(
            [part for text in some for part in parts(text)],
            add_special_tokens=False,
            truncation=False,
            verbose=False,
        ).encodings
        ids = iter([np.asarray(encoding.ids, np.int32) for encoding in encodings])
        for text in some:
            found.append(np.concatenate([next(ids) for _ in parts(text)]))
            tokens += len(found[-1])
            if limit and tokens >= limit:
                return tuple(found)
    return tuple(found)


def parts(segments: Segments) -> list[str]:
    """One text or two."""
    return [segments.first] + ([] if segments.second is None else [segments.second])
