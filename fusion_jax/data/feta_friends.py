"""The seven FETA-Friends tasks as `Task`s, full or few-shot, split by scene."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from fusion_jax.data.feta.pooled import pool_rows
from fusion_jax.data.feta.splits import (
    SPLITS_FILE,
    SceneSplits,
    assign_rows,
    own_split,
    public,
    read_splits,
)
from fusion_jax.data.feta.tasks import make_task, resolve_targets, rows_table
from fusion_jax.data.folder import load_task
from fusion_jax.data.task import Task

__all__ = ["load_feta_friends", "rows_table"]

logger = logging.getLogger(__name__)


def load_feta_friends(
    folder: str | os.PathLike[str],
    *,
    few_shot: bool = True,
    seed: int = 0,
    targets: Iterable[str] | None = None,
) -> dict[str, Task]:
    """The FETA-Friends tasks found in a folder.

    Args:
      folder: what `scripts/prepare_feta_friends.py` wrote (`full/`, `few_shot/`), or
        unsplit task folders `friends_*` beside `feta_friends_splits.json`. Of the
        latter all rows of a task are pooled and split again by scene; rows whose
        scene is unknown or in no list are left out. `friends_relation` has no
        scenes: it keeps its own split.
      few_shot: a tenth of the train and dev scenes; test is the same in both.
      seed: which tenth of the dialogues `friends_relation` takes.
      targets: folder names or benchmark names; None for all that are there.

    Returns:
      Task name -> Task, in the benchmark's order.

    Raises:
      FileNotFoundError: the folder holds neither form, or lacks a task asked for.
      ValueError: names unknown targets, bad rows, or a task without train rows.

    Reference: Albalak et al. 2022, arXiv 2205.06262.
    """
    root = Path(folder)
    names = resolve_targets(targets)
    prepared = root / ("few_shot" if few_shot else "full")
    home = prepared if prepared.is_dir() else root
    if home is root and not (root / SPLITS_FILE).is_file():
        raise FileNotFoundError(
            f"{root}: neither {prepared.name}/ (run scripts/prepare_feta_friends.py) "
            f"nor {SPLITS_FILE} beside task folders friends_*"
        )
    there = [name for name in names if (home / name).is_dir()]
    absent = [name for name in names if name not in there]
    if absent and (targets is not None or not there):
        raise FileNotFoundError(f"{home}: no task folder {', '.join(absent)}")
    if absent:
        logger.warning("%s: no task folder %s", home, ", ".join(absent))
    if home is prepared:
        return {name: load_task(home / name, name=name) for name in there}
    splits = read_splits(root / SPLITS_FILE)
    return {
        name: _pooled_task(name, root / name, splits, few_shot, seed) for name in there
    }


def _pooled_task(
    name: str, folder: Path, splits: SceneSplits, few_shot: bool, seed: int
) -> Task:
    rows = pool_rows(name, folder)
    if name == "friends_relation":
        assigned = own_split(rows, few_shot=few_shot, seed=seed)
    else:
        known = frozenset(row["group"] for row in rows if row["_known_test"])
        assigned = assign_rows(rows, splits, few_shot=few_shot, known_test=known)
    if assigned.unassigned:
        logger.info(
            "%s: %d of %d rows left out, their scene is unknown or in no list",
            name,
            assigned.unassigned,
            len(rows),
        )
    if not assigned.splits["train"]:
        raise ValueError(
            f"{folder}: no row lies in a train scene of {SPLITS_FILE}; the lists and "
            "the rows do not belong together"
        )
    return make_task(name, public(assigned.splits), origin=str(folder))
