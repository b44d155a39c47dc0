"""Tasks to token ids, by kind."""

import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.data.encoded import Encoded
from fusion_jax.data.segments import (
    Input,
    Segments,
    fit,
    of_row,
    windows,
    with_choices,
)
from fusion_jax.data.task import Row, Task, TaskError

__all__ = ["ENCODERS", "Encoded", "encode", "load_tokenizer"]


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The fast tokenizer of a Hugging Face directory; nothing is fetched.

    Raises:
      TaskError: the directory holds no tokenizer, or only a slow one.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
    if not any((folder / name).is_file() for name in names):
        raise TaskError(
            f"{folder}: no tokenizer here (none of {', '.join(names)}); give a model "
            "directory with its tokenizer files"
        )
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder), use_fast=True, local_files_only=True
    )
    if not tokenizer.is_fast:
        raise TaskError(
            f"{folder}: only a slow tokenizer; character offsets need a tokenizer.json"
        )
    return tokenizer


def encode(
    task: Task,
    split: str,
    tokenizer: Any,
    max_length: int,
    *,
    stride: int | None = None,
) -> Encoded:
    """Tokenises a split.

    Segment A is the text; segment B is the text pair, or the context cut from its left
    so that the text and the newest context stay (both: A = 'text [SEP] pair'). A choice
    row has its candidates before the text. A span row is the question and windows over
    the context. Tags stand at the first token of each word.

    Args:
      task: the task.
      split: 'train', 'dev' or 'test'.
      tokenizer: a fast tokenizer of the transformers library (`load_tokenizer`).
      max_length: most tokens of a row, special ones included.
      stride: tokens that neighbouring windows of a span context share; a quarter of
        `max_length` if None.

    Returns:
      The split as `Encoded`, rows in the order of the task's.

    Raises:
      TaskError: the split is absent, or no encoder reads the task's kind.
    """
    rows = task.rows(split)
    if task.kind not in ENCODERS:
        raise TaskError(
            f"task {task.name!r}: kind {task.kind!r} is not for an encoder; those are "
            f"{', '.join(ENCODERS)}"
        )
    if max_length < 16:
        raise TaskError(f"max_length={max_length} leaves no room for text; use 16 up")
    parts = ENCODERS[task.kind](
        task, rows, tokenizer, max_length, max_length // 4 if stride is None else stride
    )
    return Encoded(
        task_name=task.name,
        kind=task.kind,
        num_labels=task.num_labels,
        pad_token_id=tokenizer.pad_token_id or 0,
        labels=task.labels,
        unscored=tuple(task.labels.index(name) for name in task.unscored_labels),
        decision=task.decision,
        **parts,
    )


def _parts(inputs: Sequence[Input], **more: Any) -> dict[str, Any]:
    """Fields of `Encoded` that every kind has; one row an item unless `more` says."""
    columns = {
        "input_ids": [i.ids for i in inputs],
        "token_type_ids": [i.type_ids for i in inputs],
    }
    base = {
        "lengths": np.array([len(i.ids) for i in inputs], np.int32),
        "items": np.arange(len(inputs)),
    }
    return base | more | {"columns": columns | more.get("columns", {})}


def _single_label(
    task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int, stride: int
) -> dict[str, Any]:
    del task, stride
    segments = [of_row(row, tokenizer.sep_token or "") for row in rows]
    labels = [int(row["target"]) for row in rows]
    return _parts(
        fit(segments, tokenizer, max_length),
        targets={"label": np.array(labels, np.int32)},
        references=labels,
    )


def _multi_label(
    task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int, stride: int
) -> dict[str, Any]:
    del stride
    segments = [of_row(row, tokenizer.sep_token or "") for row in rows]
    labels = np.zeros((len(rows), task.num_labels), np.float32)
    for number, row in enumerate(rows):
        labels[number, list(row["target"])] = 1
    return _parts(
        fit(segments, tokenizer, max_length),
        targets={"labels": labels},
        references=[tuple(row["target"]) for row in rows],
    )


def _token(
    task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int, stride: int
) -> dict[str, Any]:
    del task, stride
    segments = [Segments(" ".join(row["tokens"]), None, False) for row in rows]
    inputs = fit(segments, tokenizer, max_length)
    # Words are found by characters, so that every tokenizer reads the same text as
    # for other tasks; words that become no token keep no place.
    token_words, tags = [], []
    for row, tokens in zip(rows, inputs, strict=True):
        sizes = [len(word) + 1 for word in row["tokens"]]
        word_of = np.repeat(np.arange(len(sizes)), sizes)
        real = tokens.offsets[:, 1] > tokens.offsets[:, 0]
        words = np.full(len(tokens.ids), -1, np.int32)
        words[real] = word_of[tokens.offsets[real, 1] - 1]
        repeated = np.zeros(len(words), bool)
        repeated[1:] = words[1:] == words[:-1]
        words[repeated] = -1
        target = np.asarray(row["target"], np.int32)
        token_words.append(words)
        tags.append(np.where(words >= 0, target[words], -1).astype(np.int32))
    return _parts(
        inputs,
        columns={"tags": tags},
        targets={},
        references=[{"tags": list(row["target"])} for row in rows],
        token_words=token_words,
    )


def _choice(
    task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int, stride: int
) -> dict[str, Any]:
    del stride
    segments = [with_choices(row, tokenizer.sep_token or "") for row in rows]
    inputs = fit(segments, tokenizer, max_length)
    choice_ids = []
    mask = np.zeros((len(rows), task.num_labels), np.float32)
    for number, (row, segment) in enumerate(zip(rows, segments, strict=True)):
        tokens = inputs[number]
        ids = np.full(len(tokens.ids), -1, np.int32)
        starts, ends = tokens.offsets[:, 0], tokens.offsets[:, 1]
        for which, text in enumerate((segment.first, segment.second or "")):
            inside = np.flatnonzero((tokens.side == which) & (ends > starts))
            places, found = _mentions(text, tuple(row["choices"]))
            # The token that holds the first character of the mention.
            at = np.searchsorted(starts[inside], places, "right") - 1
            kept = at >= 0
            hit = inside[at[kept]]
            within = ends[hit] > places[kept]
            ids[hit[within]] = found[kept][within]
        mask[number, np.unique(ids[ids >= 0])] = 1
        choice_ids.append(ids)
    labels = [int(row["target"]) for row in rows]
    return _parts(
        inputs,
        columns={"choice_ids": choice_ids},
        targets={"label": np.array(labels, np.int32), "choice_mask": mask},
        references=labels,
    )


@lru_cache(maxsize=4096)
def _mentions(text: str, choices: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where candidates are named in a text: (first characters, candidates)."""
    # Whole names, longer ones first: 'Ross Geller' before 'Ross'.
    longest = sorted(choices, key=lambda name: (-len(name), name))
    pattern = "|".join(re.escape(name) for name in longest)
    number = {name: i for i, name in enumerate(choices)}
    found = list(re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text))
    return (
        np.array([m.start() for m in found], np.int32),
        np.array([number[m.group()] for m in found], np.int32),
    )


def _span(
    task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int, stride: int
) -> dict[str, Any]:
    contexts = [row["context"] for row in rows]
    try:
        inputs, items = windows(
            [row["text"] for row in rows], contexts, tokenizer, max_length, stride
        )
    except ValueError as error:
        raise TaskError(f"task {task.name!r}: {error}") from error
    inside = [(i.side == 1) & (i.offsets[:, 1] > i.offsets[:, 0]) for i in inputs]
    positions = np.array(
        [
            _position(rows[item]["target"], tokens.offsets, mask)
            for item, tokens, mask in zip(items, inputs, inside, strict=True)
        ],
        np.int32,
    )
    return _parts(
        inputs,
        items=np.array(items),
        columns={"context_mask": [mask.astype(np.int32) for mask in inside]},
        targets={"start": positions[:, 0].copy(), "end": positions[:, 1].copy()},
        references=[{"answers": [a["text"] for a in row["target"]]} for row in rows],
        offsets=[
            np.where(mask[:, None], i.offsets, 0)
            for i, mask in zip(inputs, inside, strict=True)
        ],
        texts=contexts,
    )


def _position(
    answers: Sequence[dict[str, Any]], offsets: np.ndarray, inside: np.ndarray
) -> tuple[int, int]:
    """First and last token of the first answer that lies in the window, or (-1, -1)."""
    tokens = np.flatnonzero(inside)
    if len(tokens):
        first, last = offsets[tokens[0], 0], offsets[tokens[-1], 1]
        for answer in answers:
            text = answer["text"].strip()
            start = answer["start"] + answer["text"].find(text)
            end = start + len(text)
            if answer["start"] < 0 or not text or start < first or end > last:
                continue
            hit = tokens[(offsets[tokens, 0] < end) & (offsets[tokens, 1] > start)]
            if len(hit):
                return int(hit[0]), int(hit[-1])
    return -1, -1


ENCODERS: dict[str, Callable[..., dict[str, Any]]] = {
    "single_label": _single_label,
    "multi_label": _multi_label,
    "token": _token,
    "choice": _choice,
    "span": _span,
}
