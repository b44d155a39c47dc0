"""The tasks of a task selection: one label space, and no tested text in training."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.task import Row
from fusion_jax.systems.cold_tasks import with_test
from fusion_jax.systems.tasks import read_tasks, sized

LEAST_ROWS = 8
"""Training rows below which a task is left out: nothing is learned from so few."""

KINDS = ("single_label", "multi_label")


class SelectionTasks(NamedTuple):
    """The tasks of a run.

    Attributes:
      tasks: name -> task with train, dev and test, cut to the sizes of the config.
      whole: name -> the task with all rows: what it is like is read off all texts.
      left_out: name -> why it takes no part.
      shared: name -> training and dev rows that were dropped, as their text is among
        the test rows of some task.
    """

    tasks: dict[str, Task]
    whole: dict[str, Task]
    left_out: dict[str, str]
    shared: dict[str, int]


def selection_tasks(config: Config) -> SelectionTasks:
    """Reads the tasks and leaves out those of which nothing can be learned.

    Args:
      config: of the system.

    Raises:
      ValueError: tasks of several label spaces, or fewer than three that can take
        part; each is named.
      TaskError, FileNotFoundError: as the reader says.
    """
    read = read_tasks(config.data, tuple(config.tasks), config.seed, dev=False)
    whole = {name: with_test(task, config.seed) for name, task in read.items()}
    _check_labels(whole)
    cleaned, shared = without_tested_texts(whole)
    left_out = {name: why for name, task in cleaned.items() if (why := unfit(task))}
    fit = {name: task for name, task in cleaned.items() if name not in left_out}
    tasks = {
        name: sized(
            task,
            rows=config.rows,
            max_dev_rows=config.max_dev_rows,
            max_test_rows=config.max_test_rows,
            seed=config.seed,
        )
        for name, task in fit.items()
    }
    check_enough(tasks, left_out)
    return SelectionTasks(tasks, fit, left_out, shared)


def check_enough(tasks: Iterable[str], left_out: Mapping[str, str]) -> None:
    """Raises ValueError unless three tasks take part."""
    names = list(tasks)
    if len(names) < 3:
        told = "".join(f"\n  {name}: left out, {why}" for name, why in left_out.items())
        raise ValueError(
            f"tasks: {', '.join(names) or 'none'} can take part; a choice of sources "
            f"needs three tasks or more{told}"
        )


def unfit(task: Task) -> str:
    """Why nothing can be learned from a task; '' if it can."""
    rows = task.splits.get("train", ())
    if len(rows) < LEAST_ROWS:
        return f"{len(rows)} training rows; {LEAST_ROWS} are the least"
    if "dev" not in task.splits:
        return "no dev rows are left to choose an epoch on"
    classes = {repr(row["target"]) for row in rows}
    if len(classes) < 2:
        return "all training rows have one class"
    return ""


def without_tested_texts(
    tasks: Mapping[str, Task],
) -> tuple[dict[str, Task], dict[str, int]]:
    """Training and dev rows without the texts that some task tests on.

    Collections of reviews overlap, and a model that has read a target's test rows in
    training would look like a good source. Texts are equal if their letters and
    digits are, whatever their case.

    Args:
      tasks: with train, dev and test.

    Returns:
      (the tasks, how many rows each lost).
    """
    tested = {_text(row) for task in tasks.values() for row in task.rows("test")}
    cleaned, lost = {}, {}
    for name, task in tasks.items():
        splits = dict(task.splits)
        before = sum(map(len, splits.values()))
        for split in ("train", "dev"):
            splits[split] = tuple(r for r in splits[split] if _text(r) not in tested)
        lost[name] = before - sum(map(len, splits.values()))
        filled = {split: rows for split, rows in splits.items() if rows}
        cleaned[name] = replace(task, splits=filled)
    return cleaned, lost


def _text(row: Row) -> str:
    parts = (row.get("context", ""), row["text"], row.get("text_pair", ""))
    return "|".join(re.sub(r"[\W_]+", "", part.lower()) for part in parts)


def _check_labels(tasks: Mapping[str, Task]) -> None:
    """Raises unless all tasks have one label space, so that zero-shot is defined."""
    wrong = [
        f"{task.name}: kind {task.kind}; zero-shot is for {', '.join(KINDS)}"
        for task in tasks.values()
        if task.kind not in KINDS
    ]
    spaces: dict[tuple[str, ...], list[str]] = {}
    for task in tasks.values():
        spaces.setdefault((task.kind, *task.labels), []).append(task.name)
    most = max(spaces, key=lambda space: len(spaces[space]), default=())
    wrong += [
        f"{', '.join(names)}: {space[0]} with labels {', '.join(space[1:])}, others "
        f"have {', '.join(most[1:])}; map them with label_map in data.tasks, or leave "
        "them out"
        for space, names in spaces.items()
        if space != most
    ]
    if wrong:
        raise ValueError(
            "a model of one task can only be tried on tasks with the same labels:\n  "
            + "\n  ".join(wrong)
        )
