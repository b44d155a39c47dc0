"""The tasks of ColD Fusion: their splits, which are seen, and who contributes when."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fusion_jax.config import Config
from fusion_jax.data import Task, few_shot, split_off_dev
from fusion_jax.systems.tasks import read_tasks, sized

# Streams of the seed: folds and rounds are drawn from numbers of their own.
_FOLDS, _ROUNDS = 1, 2


class Fold(NamedTuple):
    """Who may contribute in a run.

    Attributes:
      name: 'all', or 'fold_0' ...
      seen: tasks that contribute.
      unseen: tasks that only evaluate.
    """

    name: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


class ColdTasks(NamedTuple):
    """The tasks of one seed.

    Attributes:
      tasks: name -> task with train, dev and test, cut to the sizes of the config.
      rows: name -> training rows before the cut.
      tiny: names of those that are left out of the second average.
    """

    tasks: dict[str, Task]
    rows: dict[str, int]
    tiny: frozenset[str]


def cold_tasks(config: Config, seed: int) -> ColdTasks:
    """Reads the tasks and gives each three splits.

    Args:
      config: of the system.
      seed: of every draw.

    Raises:
      TaskError, ValueError: as the reader says.
    """
    read = read_tasks(config.data, tuple(config.tasks), seed, dev=False)
    whole = {name: with_test(task, seed) for name, task in read.items()}
    rows = {name: len(task.rows("train")) for name, task in whole.items()}
    tiny = config.tiny or [name for name in rows if rows[name] < config.tiny_rows]
    tasks = {
        name: sized(
            task,
            rows=config.shots,
            max_dev_rows=config.max_dev_rows,
            max_test_rows=config.max_test_rows,
            seed=seed,
        )
        for name, task in whole.items()
    }
    return ColdTasks(tasks, rows, frozenset(tiny))


def with_test(task: Task, seed: int) -> Task:
    """The task with train, dev and test.

    Where the test labels are not public, dev is what one tests on (GLUE, SuperGLUE),
    and a seeded tenth of train is dev then. What chooses an epoch never tests.

    Raises:
      TaskError: there is no train split, or a single row.
    """
    if "test" not in task.splits:
        held = split_off_dev(task, seed)
        splits = {name: x for name, x in held.splits.items() if name != "dev"}
        task = replace(task, splits=splits | {"test": held.splits["dev"]})
    return split_off_dev(task, seed)


def few_rows(task: Task, rows: int, seed: int) -> Task:
    """Train and dev for so many labelled rows; a task with fewer keeps all it has."""
    return few_shot(task, min(rows, len(task.rows("train"))), seed)


def folds_of(config: Config, names: Sequence[str], seed: int) -> list[Fold]:
    """The folds that a config asks for.

    Tasks are dealt to folds in a seeded order, so that sizes differ by one at most.

    Args:
      config: 'folds' and 'fold'.
      names: of all tasks.
      seed: of the draw.
    """
    if not config.folds:
        return [Fold("all", tuple(names), ())]
    generator = np.random.Generator(np.random.PCG64([seed, _FOLDS]))
    order = [names[i] for i in generator.permutation(len(names))]
    wanted = range(config.folds) if config.fold < 0 else [config.fold]
    found = []
    for fold in wanted:
        left = set(order[fold :: config.folds])
        found.append(
            Fold(
                f"fold_{fold}",
                tuple(name for name in names if name not in left),
                tuple(name for name in names if name in left),
            )
        )
    return found


def contributors(
    seen: Sequence[str], count: int, round_: int, seed: int
) -> tuple[str, ...]:
    """The tasks that contribute to a round, drawn without replacement.

    Args:
      seen: tasks that may.
      count: how many; all where there are fewer.
      round_: of the base that they start from.
      seed: of the run.
    """
    generator = np.random.Generator(np.random.PCG64([seed, _ROUNDS, round_]))
    drawn = sorted(int(i) for i in generator.permutation(len(seen))[:count])
    return tuple(seen[i] for i in drawn)


def contributor_name(task: str) -> str:
    """A task's name as a repository takes it."""
    name = re.sub(r"[^A-Za-z0-9._=-]", "_", task)[:100]
    return f"_{name[1:]}" if name.startswith(".") else name
