"""The seven tasks from the raw public files: read, split by scene, written."""

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.data.feta.raw_files import RawFiles
from fusion_jax.data.feta.read_charid import REPOSITORY as CHARID
from fusion_jax.data.feta.read_charid import read_charid
from fusion_jax.data.feta.read_dialogue_tasks import (
    question_dialogues,
    read_personality,
    read_questions,
    read_relations,
)
from fusion_jax.data.feta.read_emory import OFFICIAL as EMORY
from fusion_jax.data.feta.read_emory import read_emory
from fusion_jax.data.feta.read_meld import read_meld
from fusion_jax.data.feta.read_reading import read_reading, reading_lines
from fusion_jax.data.feta.scene_order import SceneOrder, scene_order
from fusion_jax.data.feta.scene_text import SceneIndex
from fusion_jax.data.feta.splits import (
    SPLITS_FILE,
    SceneSplits,
    assign_rows,
    own_split,
    public,
    split_scenes,
)
from fusion_jax.data.feta.tasks import FETA_TASKS, make_task
from fusion_jax.data.feta.transcripts import read_seasons, scenes_of
from fusion_jax.data.folder import write_task
from fusion_jax.data.task import Task

MODES = {"full": False, "few_shot": True}
Rows = list[dict[str, Any]]


class Built(NamedTuple):
    """What could be built from the files that are there.

    Attributes:
      tasks: 'full' and 'few_shot' -> task name -> Task.
      splits: the scene split.
      order: the order of scenes that it rests on.
      rows: task name -> rows read, before the split.
      unassigned: task name -> rows whose scene is unknown or has no certain place.
      missing: files that were looked for, and what follows from their absence.
    """

    tasks: dict[str, dict[str, Task]]
    splits: SceneSplits
    order: SceneOrder
    rows: dict[str, int]
    unassigned: dict[str, int]
    missing: tuple[str, ...]


def build_tasks(folder: Path, *, seed: int = 0) -> Built:
    """Reads the raw files of a folder and splits all tasks by scene.

    Args:
      folder: `<owner>__<repository>` folders or `.tar.gz` archives of them.
      seed: draws the few-shot dialogues of `friends_relation` where its scenes are
        unknown.

    Returns:
      The tasks; one without training rows is left out.

    Raises:
      TaskError: wrong folder, damaged archive, or a file whose form has changed.

    Reference: Albalak et al. 2022, arXiv 2205.06262.
    """
    raw = RawFiles(folder)
    seasons = read_seasons(raw)
    rows: dict[str, Rows] = {
        "friends_emory_emotion": read_emory(raw, seasons),
        "friends_reading": read_reading(raw),
        "friends_charid": read_charid(raw, seasons),
        "friends_qa": read_questions(raw),
        "friends_personality": read_personality(raw),
    }
    complete = len(seasons) == 10
    index = _index(raw, rows, seasons)
    rows["friends_meld"] = read_meld(raw, index)
    rows["friends_relation"] = read_relations(raw, index if complete else None)
    observed = {
        row["group"]
        for name, part in rows.items()
        if name != "friends_relation"
        for row in part
    }
    order = scene_order(
        {
            season: [scene.name for scene in scenes]
            for season, scenes in seasons.items()
        },
        observed,
    )
    splits = split_scenes(order.order)
    tasks: dict[str, dict[str, Task]] = {mode: {} for mode in MODES}
    unassigned: dict[str, int] = {}
    for name in FETA_TASKS:
        for mode, few_shot in MODES.items():
            if name == "friends_relation" and not complete:
                parts = own_split(rows[name], few_shot=few_shot, seed=seed)
            else:
                parts = assign_rows(rows[name], splits, few_shot=few_shot)
            unassigned[name] = parts.unassigned
            if parts.splits["train"]:
                tasks[mode][name] = make_task(name, public(parts.splits), str(folder))
    return Built(
        tasks,
        splits,
        order,
        {name: len(rows[name]) for name in FETA_TASKS},
        unassigned,
        tuple(raw.missing),
    )


def write_built(built: Built, out: Path) -> None:
    """Writes OUT/full/<task>, OUT/few_shot/<task>, the split, and what was missing.

    Every folder and file appears in full or not at all.
    """
    for mode, tasks in built.tasks.items():
        for name, task in tasks.items():
            with _named(out / mode / name):
                _write_compressed(task, out / mode / name)
    _write_json(out / SPLITS_FILE, built.splits.to_json())
    _write_json(
        out / "build.json",
        {
            "scene_order": "exact" if built.order.exact else "rebuilt",
            "uncertain_positions": built.order.uncertain,
            "rows_read": built.rows,
            "rows_without_a_certain_scene": built.unassigned,
            "missing": list(built.missing),
        },
    )


def _index(
    raw: RawFiles, rows: Mapping[str, Rows], seasons: Mapping[int, Iterable[Any]]
) -> SceneIndex:
    """Every line whose scene is known: MELD is placed by them."""
    index = SceneIndex()
    for scenes in seasons.values():
        for scene in scenes:
            for turn in scene.utterances:
                index.add(scene.name, turn.text)
    for repository, stem in (
        (EMORY, "emotion-detection"),
        (CHARID, "character-identification"),
    ):
        for part in ("trn", "dev", "tst"):
            for scene in scenes_of(raw, repository, f"json/{stem}-{part}.json") or ():
                for turn in scene.utterances:
                    index.add(scene.name, turn.text)
    for record in question_dialogues(raw, note_missing=False):
        for turn in record["utterances"]:
            index.add(record["title"], turn["utterance"])
    for scene, lines in reading_lines(raw).items():
        for line in lines:
            index.add(scene, line)
    for name in ("friends_emory_emotion", "friends_personality"):
        texts: dict[tuple[str, str], None] = {}
        for row in rows[name]:
            context = row.get("context", "")
            if name == "friends_emory_emotion":
                context = row["text"].partition(": ")[2]
            texts[row["group"], context] = None
        for scene, text in texts:
            index.add(scene, text)
    return index


def _write_compressed(task: Task, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", dir=folder.parent
    ) as staging:
        made = write_task(task, Path(staging) / folder.name)
        for path in sorted(made.glob("*.jsonl")):
            # No time stamp inside, so equal rows give equal bytes.
            data = gzip.compress(path.read_bytes(), mtime=0)
            path.with_name(f"{path.name}.gz").write_bytes(data)
            path.unlink()
        if folder.exists():
            os.replace(folder, Path(staging) / "old")
        os.replace(made, folder)


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        # A full disk does not say what was being written.
        raise OSError(f"{target} could not be written: {error}") from error


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1) + "\n")
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
