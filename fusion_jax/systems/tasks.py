"""Where a run's tasks come from: readers by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fusion_jax.data import Task, TaskError, few_shot, load_task, split_off_dev
from fusion_jax.data.feta_friends import load_feta_friends
from fusion_jax.data.hub import from_datasets
from fusion_jax.data.synthetic import LABELS, generate


def _synthetic(options: Mapping[str, Any], names: tuple[str, ...], seed: int):
    """Generated tasks; `options` go to `data.synthetic.generate`."""
    made = generate(seed, **options)
    return {name: made[name] for name in names or made}


def _synthetic_domains(options: Mapping[str, Any], names: tuple[str, ...], seed: int):
    """One generated task in several domains, `asks`_0 to `asks`_(count - 1).

    Each domain has phrases of its own that are common, so that domains have one label
    space and differ in their words; domains 2 i and 2 i + 1 share them.
    """
    told = dict(options)
    asks, count = told.pop("asks", "stance"), int(told.pop("count", 6))
    if asks not in LABELS:
        raise ValueError(f"data.asks: '{asks}' is none of {', '.join(LABELS)}")
    # Tasks are made in their order: those after it are not needed.
    told["num_tasks"] = list(LABELS).index(asks) + 1
    made = {}
    for domain in range(count):
        told["ambiguity"] = 0.1 + 0.2 * (domain % 2)
        task = generate(1000 * seed + domain // 2, **told)[asks]
        made[f"{asks}_{domain}"] = replace(task, name=f"{asks}_{domain}")
    return {name: made[name] for name in names or made}


def _folders(options: Mapping[str, Any], names: tuple[str, ...], seed: int):
    """Task folders below `path`, all of them where no names are given.

    `tasks` may hold for each name what `load_task` is told over the folder's own
    task.json: labels, columns, where, label_map, ... Its `folder` makes several tasks
    of one folder: the name is the task's own then.
    """
    root = Path(options["path"])
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.path: {root} is no folder; name the folder that "
            "holds the task folders"
        )
    names = names or tuple(
        sorted(
            p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")
        )
    )
    read = {}
    for name in names:
        told = dict(options.get("tasks", {}).get(name, {}))
        folder = told.pop("folder", None)
        read[name] = load_task(
            root / (folder or name),
            name=name if folder else None,
            seed=seed,
            use_partial=options.get("use_partial", False),
            overrides=told,
        )
    return read


def _feta_friends(options: Mapping[str, Any], names: tuple[str, ...], seed: int):
    """The FETA-Friends tasks; see `data.feta_friends.load_feta_friends`."""
    return load_feta_friends(
        options["path"],
        few_shot=options.get("few_shot", True),
        seed=seed,
        targets=names or None,
    )


def _datasets(options: Mapping[str, Any], names: tuple[str, ...], seed: int):
    """Subsets of one data set of the `datasets` library, hub or disk."""
    del seed
    common = {k: v for k, v in options.items() if k not in ("path", "subsets")}
    subsets = dict(options.get("subsets") or {name: {} for name in names})
    return {
        name: from_datasets(
            options["path"],
            subset=name,
            name=name,
            **{**common, **dict(subsets.get(name, {}))},
        )
        for name in names or subsets
    }


READERS: dict[str, Callable[..., dict[str, Task]]] = {
    "synthetic": _synthetic,
    "synthetic_domains": _synthetic_domains,
    "folders": _folders,
    "feta_friends": _feta_friends,
    "datasets": _datasets,
}
"""`(options, names, seed) -> {name: Task}`; add a reader by a line here."""


def read_tasks(
    data: Mapping[str, Any], names: tuple[str, ...], seed: int, *, dev: bool = True
) -> dict[str, Task]:
    """The tasks of a run, every one with train and dev.

    Args:
      data: 'reader', a key of `READERS`, and the reader's options.
      names: which tasks; empty = all there are.
      seed: of generated tasks and seeded splits.
      dev: split dev off train where it is absent; without, tasks are as they are.

    Raises:
      ValueError: an unknown reader or task.
      FileNotFoundError, TaskError: as the reader says.
    """
    given = data.to_dict() if isinstance(data, ConfigDict) else dict(data)
    options = {k: v for k, v in given.items() if v not in ("", None)}
    reader = options.pop("reader")
    if reader not in READERS:
        raise ValueError(
            f"data.reader: '{reader}' is unknown; there are {', '.join(READERS)}"
        )
    try:
        tasks = READERS[reader](options, tuple(names), seed)
    except KeyError as error:
        raise ValueError(
            f"data: reader '{reader}' lacks {error}; set data.path, and "
            "name tasks that it has"
        ) from error
    if not dev:
        return tasks
    return {name: split_off_dev(task, seed) for name, task in tasks.items()}


def cut(task: Task, *, shots: int, max_test_rows: int, seed: int) -> Task:
    """Few shots of a task, and a seeded part of a large test split."""
    if shots and shots < len(task.rows("train")):
        task = few_shot(task, shots, seed)
    return _at_most(task, "test", max_test_rows, seed)


def sized(
    task: Task, *, rows: int, max_dev_rows: int, max_test_rows: int, seed: int
) -> Task:
    """At most so many rows of each split, drawn with the seed; 0 = all.

    Unlike with few shots, dev has a size of its own.

    Raises:
      TaskError: the task has no dev split.
    """
    task = _at_most(task, "test", max_test_rows, seed)
    task = _at_most(task, "dev", max_dev_rows, seed)
    if rows and rows < len(task.rows("train")):
        fewer = few_shot(task, rows, seed)
        splits = {**task.splits, "train": fewer.splits["train"]}
        task = replace(task, splits=splits)
    if "dev" not in task.splits:
        raise TaskError(f"task {task.name!r} has no dev split to choose on")
    return task


def _at_most(task: Task, split: str, size: int, seed: int) -> Task:
    """A seeded part of a split that has more rows than `size`, if that is not 0."""
    rows = task.splits.get(split, ())
    if not size or len(rows) <= size:
        return task
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = np.sort(generator.choice(len(rows), size, replace=False))
    splits = {**task.splits, split: tuple(rows[i] for i in chosen)}
    return replace(task, splits=splits)
