"""A saved model scored on a task folder."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data import Task, TaskError, load_task
from fusion_jax.data.task import target_labels
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.evaluation.bootstrap import interval
from fusion_jax.evaluation.readout import make_reader, read
from fusion_jax.evaluation.scoring import Scores, score
from fusion_jax.systems.problem import Problem, make_problem
from fusion_jax.types import Params

TOKENS_PER_BATCH = 4096
LABELLED = ("single_label", "multi_label", "token")
"""Kinds whose head has one column a class name."""


def score_splits(
    problem: Problem,
    params: Params,
    splits: Sequence[str],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> dict[str, Scores]:
    """Scores of one model on splits that the problem has: split -> scores."""
    reader = make_reader(problem.model.apply, problem.kind)
    scores = {}
    for split in splits:
        encoded = problem.encoded[split]
        batches = problem.batches(split, tokens_per_batch)
        readout = read(reader, params, batches, len(encoded))
        scores[split] = score(readout, encoded, problem.metrics)
    return scores


def evaluate(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    max_length: int = 128,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Scores a model on a task folder.

    Args:
      source: the model, with a head for the task's kind; see `huggingface.resolve`.
      folder: the task; its labels are found among the model's by name.
      split: which; test, or dev where there is no test, if None.
      max_length: tokens of an input.
      dtype: of the computation.

    Returns:
      'model', 'task', 'kind', 'split', 'rows', 'metric', 'score' with its 95 %
      'interval', 'metrics' (name -> value) and 'loss', all plain values.

    Raises:
      CheckpointError: no model there, or no head of the task's kind.
      TaskError: no such task or split, bad rows, or labels that the model has not.
    """
    task = load_task(folder, use_partial=True)
    split = split or ("test" if "test" in task.splits else "dev")
    rows = task.rows(split)
    model = hf.load(source, kind=task.kind)
    task = relabelled(task, model.labels, str(source))
    problem = make_problem(
        task,
        model,
        load_tokenizer(model.path),
        max_length=max_length,
        dtype=dtype,
        splits=(split,),
    )
    scores = score_splits(problem, model.params, [split])[split]
    return {
        "model": str(source),
        "task": task.name,
        "kind": task.kind,
        "split": split,
        "rows": len(rows),
        "metric": " + ".join(problem.metrics),
        "score": scores.mean,
        "interval": list(interval(scores)),
        "metrics": scores.values,
        "loss": scores.loss,
    }


def relabelled(task: Task, labels: tuple[str, ...], model: str) -> Task:
    """The task with class ids of a model that knows its labels in another order.

    Args:
      task: of any kind; kinds without class names stay as they are.
      labels: the model's.
      model: what it is called, for messages.

    Raises:
      TaskError: the task has labels that the model has not.

    Warns:
      UserWarning: the model names no labels and has as many: taken in their order.
    """
    if task.kind not in LABELLED or task.labels == labels:
        return task
    nameless = all(name == f"LABEL_{i}" for i, name in enumerate(labels))
    if nameless and len(labels) == len(task.labels):
        warnings.warn(
            f"{model} does not name its labels; they are taken to be the task's, in "
            f"this order: {', '.join(task.labels)}",
            UserWarning,
            stacklevel=2,
        )
        return task
    unknown = [name for name in task.labels if name not in labels]
    if unknown:
        raise TaskError(
            f"task {task.name!r}: {model} does not know the labels "
            f"{', '.join(unknown)}; it knows {', '.join(labels)}. Take a model of this "
            "task, or map the labels with label_map in task.json"
        )
    place = [labels.index(name) for name in task.labels]

    def moved(row: dict[str, Any]) -> dict[str, Any]:
        ids = [place[i] for i in target_labels(task.kind, row["target"])]
        if task.kind == "single_label":
            return {**row, "target": ids[0]}
        return {
            **row,
            "target": tuple(sorted(ids) if task.kind == "multi_label" else ids),
        }

    splits = {name: tuple(map(moved, rows)) for name, rows in task.splits.items()}
    return replace(task, labels=labels, splits=splits)
