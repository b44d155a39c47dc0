"""The scene split of FETA-Friends: one for all tasks, full and few-shot."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NUM_SCENES = 3107
SPLITS_FILE = "feta_friends_splits.json"


class SceneSplits(NamedTuple):
    """Scene ids of each part; the few-shot parts lie inside train and dev."""

    train: frozenset[str]
    dev: frozenset[str]
    test: frozenset[str]
    fs_train: frozenset[str]
    fs_dev: frozenset[str]

    def part_of(self, scene: str, *, few_shot: bool) -> str | None:
        """'train', 'dev', 'test', or None for a scene that is in no part."""
        train, dev = (
            (self.fs_train, self.fs_dev) if few_shot else (self.train, self.dev)
        )
        if scene in self.test:
            return "test"
        return "train" if scene in train else "dev" if scene in dev else None

    def to_json(self) -> dict[str, list[str]]:
        """Sorted lists by part name."""
        return {part: sorted(ids) for part, ids in self._asdict().items()}


def split_positions(count: int = NUM_SCENES) -> dict[str, list[int]]:
    """Positions of each part among `count` scenes in broadcast order.

    Full: `random.seed(0)`, shuffle; the first int(.15 N) are test, up to int(.30 N)
    dev, the rest train. Few-shot: `random.seed(2530)`; a tenth of the sorted train
    scenes, then, from the same stream, a tenth of the sorted dev scenes.

    Returns:
      Sorted positions of train, dev, test, fs_train, fs_dev.

    Reference: Albalak et al. 2022, arXiv 2205.06262, and its public preprocessing.
    """
    positions = list(range(count))
    random.Random(0).shuffle(positions)
    first, second = int(count * 0.15), int(count * (0.15 + 0.15))
    test, dev = sorted(positions[:first]), sorted(positions[first:second])
    train = sorted(positions[second:])
    # The order of the two samples matters: they share one stream.
    few = random.Random(2530)
    fs_train = sorted(few.sample(train, int(len(train) * 0.1)))
    fs_dev = sorted(few.sample(dev, int(len(dev) * 0.1)))
    return {
        "train": train,
        "dev": dev,
        "test": test,
        "fs_train": fs_train,
        "fs_dev": fs_dev,
    }


def split_scenes(order: Sequence[str | None]) -> SceneSplits:
    """The split of scenes in broadcast order.

    Args:
      order: [N] scene ids; None where it is not certain which scene stands there.
        Such a position takes part in the shuffle and is then left out.
    """
    return SceneSplits(
        **{
            part: frozenset(
                scene
                for scene in (order[position] for position in positions)
                if scene is not None
            )
            for part, positions in split_positions(len(order)).items()
        }
    )


def read_splits(path: Path) -> SceneSplits:
    """Reads a file of five lists of scene ids.

    Raises:
      ValueError: names the file, and the lists that are missing or overlap.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    missing = [part for part in SceneSplits._fields if part not in value]
    if missing:
        raise ValueError(
            f"{path}: no list {', '.join(missing)}; expected one list of scene ids "
            f"for each of {', '.join(SceneSplits._fields)}"
        )
    splits = SceneSplits(*(frozenset(value[part]) for part in SceneSplits._fields))
    faults = []
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        shared = getattr(splits, one) & getattr(splits, other)
        if shared:
            faults.append(f"{one} and {other} share {min(shared)}")
    for part, whole in (("fs_train", "train"), ("fs_dev", "dev")):
        outside = getattr(splits, part) - getattr(splits, whole)
        if outside:
            faults.append(f"{part} holds {min(outside)}, which {whole} does not")
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    return splits


class Assigned(NamedTuple):
    """Rows by split, and how many rows found no place."""

    splits: dict[str, list[dict[str, Any]]]
    unassigned: int


def assign_rows(
    rows: Iterable[Mapping[str, Any]],
    splits: SceneSplits,
    *,
    few_shot: bool,
    known_test: frozenset[str] = frozenset(),
) -> Assigned:
    """Distributes rows by their `group`.

    Args:
      rows: normalised rows whose 'group' is the scene id ('' = unknown).
      splits: the scene split.
      few_shot: take the few-shot train and dev scenes; test is the same.
      known_test: scenes known to be test scenes although no list holds them.

    Returns:
      The splits; `unassigned` counts rows whose scene is in no list (rows of train
      and dev scenes outside the few-shot lists are left out but not counted).
    """
    result: dict[str, list[dict[str, Any]]] = {"train": [], "dev": [], "test": []}
    unassigned = 0
    for row in rows:
        scene = row["group"]
        full = splits.part_of(scene, few_shot=False)
        if full is None and scene in known_test:
            full = "test"
        if full is None:
            unassigned += 1
            continue
        part = full
        if few_shot and full != "test":
            part = splits.part_of(scene, few_shot=True)
        if part is not None:
            result[part].append(dict(row))
    return Assigned(result, unassigned)


def own_split(
    rows: Sequence[Mapping[str, Any]], *, few_shot: bool, seed: int
) -> Assigned:
    """Rows by the file they came from ('_split'), few-shot by whole dialogues.

    A tenth of the train and dev dialogues, drawn with `seed` and `seed + 1`: a split
    of our own where scenes are unknown, not the benchmark's.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    for offset, split in enumerate(("train", "dev", "test")):
        part = [dict(row) for row in rows if row["_split"] == split]
        if few_shot and part and split != "test":
            chosen = sample_groups((row["group"] for row in part), seed + offset)
            part = [row for row in part if row["group"] in chosen]
        result[split] = part
    return Assigned(result, 0)


def public(
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """The rows without the keys that only serve their split ('_...')."""
    return {
        split: [
            {key: value for key, value in row.items() if not key.startswith("_")}
            for row in rows
        ]
        for split, rows in splits.items()
    }


def sample_groups(groups: Iterable[str], seed: int, share: float = 0.1) -> set[str]:
    """A seeded share of the groups, at least one; the same on every Python."""
    ordered = sorted(set(groups))
    return set(random.Random(seed).sample(ordered, max(1, int(len(ordered) * share))))
