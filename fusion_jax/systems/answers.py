"""What a saved model says of rows that have no target."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data import Task, TaskError
from fusion_jax.data.rows import RowForm, normalise
from fusion_jax.data.task import report
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.evaluation.predictions import (
    parse_decision,
    predict,
    softmax,
    split_words,
)
from fusion_jax.evaluation.readout import make_reader, read
from fusion_jax.systems.problem import Problem, make_problem
from fusion_jax.systems.saved_model import LABELLED, TOKENS_PER_BATCH


def answers(
    source: str | os.PathLike[str],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    decision: str = "",
    max_length: int = 128,
    dtype: str = "float32",
) -> list[dict[str, Any]]:
    """What a model says of rows without targets.

    Args:
      source: the model; see `huggingface.resolve`.
      rows: (place, for messages; columns as in a task folder: text, text_pair,
        context, speaker; tokens, else the text's words, for token; choices for
        choice; for span the question is the text and the passage the context).
      decision: rule of a multi-label model, as in `Task`.
      max_length: tokens of an input.
      dtype: of the computation.

    Returns:
      A record for each row, by kind: single_label and choice 'label', 'probability',
      'probabilities' (by name); multi_label 'labels', 'probabilities'; token 'tokens',
      'tags'; span 'answer', 'confidence' (a sum of two logits).

    Raises:
      CheckpointError: there is no model, or one without a head that is known.
      TaskError: rows lack what the kind needs; all of them are named.
    """
    model = hf.load(source)
    if model.kind is None:
        raise hf.CheckpointError(
            f"{model.path} is an encoder without a head for a task; fine-tune it first"
        )
    if not rows:
        return []
    parse_decision(decision)
    task = replace(_asked(model, rows), decision=decision)
    problem = make_problem(
        task,
        model,
        load_tokenizer(model.path),
        max_length=max_length,
        dtype=dtype,
        splits=("test",),
    )
    encoded = problem.encoded["test"]
    readout = read(
        make_reader(problem.model.apply, problem.kind),
        model.params,
        problem.batches("test", TOKENS_PER_BATCH),
        len(encoded),
    )
    return ANSWERS[problem.kind](problem, readout, predict(readout, encoded))


def _asked(model: hf.Checkpoint, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Task:
    """A task of the rows; its targets are placeholders that nothing reads."""
    kind, labels = str(model.kind), model.labels
    form = RowForm(kind, {name: i for i, name in enumerate(labels)})
    asked, problems = [], []
    for place, raw in rows:
        try:
            row = normalise(_with_target(dict(raw), kind, labels, form), form)
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"{place}: {error}")
        else:
            asked.append(row)
    if problems:
        raise TaskError(report(f"rows for {model.path}", problems))
    named = labels if kind in LABELLED else ()
    return Task(model.path.name, kind, named, (), {"test": tuple(asked)})


def _with_target(
    raw: dict[str, Any], kind: str, labels: tuple[str, ...], form: RowForm
) -> dict[str, Any]:
    text = form.get(raw, "text")
    if kind == "token":
        tokens = form.get(raw, "tokens") or (text or "").split()
        if not tokens:
            raise ValueError(f"no 'tokens' and no 'text' (there is {', '.join(raw)})")
        return {"tokens": tokens, "tags": [labels[0]] * len(tokens)}
    if not isinstance(text, str):
        raise ValueError(f"no 'text' (there is {', '.join(raw) or 'nothing'})")
    if kind == "choice":
        choices = form.get(raw, "choices")
        if not isinstance(choices, list) or not choices:
            raise ValueError("a choice row needs 'choices', a list of names")
        return raw | {"label": choices[0]}
    if kind == "span" and not form.get(raw, "context"):
        raise ValueError("'context' is needed, the text that holds the answer")
    if kind == "span":
        return raw | {"answers": []}
    return raw | ({"labels": []} if kind == "multi_label" else {"label": labels[0]})


def _one_label(
    problem: Problem, readout: Mapping[str, np.ndarray], found: np.ndarray
) -> list[dict[str, Any]]:
    records = []
    chances = softmax(np.asarray(readout["logits"], np.float64))
    for row, index, chance in zip(
        problem.task.rows("test"), found, chances, strict=True
    ):
        names = row.get("choices", problem.task.labels)
        records.append(
            {
                "label": names[index],
                "probability": float(chance[index]),
                "probabilities": dict(zip(names, chance.tolist(), strict=False)),
            }
        )
    return records


def _label_set(
    problem: Problem, readout: Mapping[str, np.ndarray], found: np.ndarray
) -> list[dict[str, Any]]:
    labels = problem.task.labels
    logits = np.asarray(readout["logits"], np.float64)
    rule, _ = parse_decision(problem.task.decision)
    chances = softmax(logits) if rule == "softmax" else _sigmoid(logits)
    return [
        {
            "labels": [name for name, yes in zip(labels, chosen, strict=True) if yes],
            "probabilities": dict(zip(labels, chance.tolist(), strict=True)),
        }
        for chosen, chance in zip(found, chances, strict=True)
    ]


def _tags(
    problem: Problem, readout: Mapping[str, np.ndarray], found: np.ndarray
) -> list[dict[str, Any]]:
    del readout
    labels = problem.task.labels
    rows = problem.task.rows("test")
    parts = split_words(found, problem.encoded["test"])
    return [
        {"tokens": list(row["tokens"]), "tags": [labels[i] for i in part]}
        for row, part in zip(rows, parts, strict=True)
    ]


def _spans(
    problem: Problem, readout: Mapping[str, np.ndarray], found: np.ndarray
) -> list[dict[str, Any]]:
    best = np.full(len(found), -np.inf)
    np.maximum.at(best, problem.encoded["test"].items, readout["confidence"])
    return [
        {"answer": str(text), "confidence": float(confidence)}
        for text, confidence in zip(found, best, strict=True)
    ]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # Through the softmax of (z, 0): no overflow for large negative logits.
    return softmax(np.stack([logits, np.zeros_like(logits)], -1))[..., 0]


ANSWERS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "single_label": _one_label,
    "choice": _one_label,
    "multi_label": _label_set,
    "token": _tags,
    "span": _spans,
}
"""kind -> `(problem, readout, predictions) -> records`."""
