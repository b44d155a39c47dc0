"""A task as a folder of JSONL or CSV files: reading and writing."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.data.assemble import assemble, merge_options
from fusion_jax.data.dialogues import Dialogue, read_dialogues
from fusion_jax.data.files import find_splits, read_json, read_rows
from fusion_jax.data.rows import RowForm
from fusion_jax.data.task import Row, Task, TaskError, few_shot


def load_task(
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    shots: int | None = None,
    seed: int = 0,
    use_partial: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Task:
    """Reads a task's folder: split files, labels.json, optional task.json, dialogues.

    `task.json` may hold kind, metrics, labels, columns (field -> column name), where
    (column -> value, or list of values, that rows must have), label_map (raw label ->
    class name, or null to drop the row), unscored_labels and decision; what it leaves
    out is inferred from the first row. A top-level 'text', 'text_pair', 'context' or
    'label' is short for an entry of 'columns'.

    Args:
      folder: holds train, dev (or validation), test as .jsonl, .csv, or either .gz.
      name: name of the task; the folder's name if None.
      shots: training rows in all (`few_shot`); None keeps all rows.
      seed: of the draw.
      use_partial: count `train_partial` as train.
      overrides: options as in task.json, over which they win.

    Returns:
      The task. An absent split stays absent.

    Raises:
      TaskError: names the file and line of every bad row (the first ten in full), or
        the split or option that is wrong.

    Warns:
      UserWarning: labels that occur in dev or test and never in train.
    """
    folder = Path(folder)
    options = merge_options(
        str(folder),
        [("task.json", _written_options(folder)), ("overrides", overrides or {})],
    )
    files = find_splits(folder, use_partial=use_partial)
    dialogues = read_dialogues(folder)
    problems: list[str] = []
    raw = {
        split: _read_split(paths, options.get("where", {}), problems)
        for split, paths in files.items()
    }

    def join(row: Mapping[str, Any], form: RowForm) -> Dialogue | None:
        key = row.get("dialogue_id")
        if not dialogues or key is None or form.get(row, "context") is not None:
            return None
        if key not in dialogues:
            raise ValueError(f"dialogue_id {key!r} is not in the dialogues file")
        return dialogues[key]

    task = assemble(
        str(folder),
        name or folder.resolve().name,
        raw,
        options,
        labels=read_json(folder / "labels.json"),
        join=join,
        problems=problems,
    )
    return task if shots is None else few_shot(task, shots, seed)


def write_task(task: Task, folder: str | os.PathLike[str]) -> Path:
    """Writes a task as a folder that `load_task` reads back equal.

    The folder appears in full or not at all; one that is there is replaced.

    Returns:
      The folder.
    """
    head = {
        "kind": task.kind,
        "metrics": list(task.metrics),
        "unscored_labels": list(task.unscored_labels),
        "decision": task.decision,
    }
    with atomic.directory(folder) as staging:
        for split, rows in task.splits.items():
            with (staging / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for row in rows:
                    line = json.dumps(_raw_row(task, row), ensure_ascii=False)
                    file.write(line + "\n")
        _write_json(staging / "labels.json", list(task.labels))
        _write_json(staging / "task.json", {k: v for k, v in head.items() if v})
    return Path(folder)


def _written_options(folder: Path) -> Mapping[str, Any]:
    written = read_json(folder / "task.json")
    if written is not None and not isinstance(written, dict):
        raise TaskError(f"{folder / 'task.json'}: an object of options is expected")
    return written or {}


def _read_split(
    paths: list[Path], where: Mapping[str, Any], problems: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Rows that pass the filters; unreadable lines are added to `problems`."""
    kept, total, unreadable = [], 0, 0
    for path in paths:
        for line, row in read_rows(path):
            total += 1
            if isinstance(row, str):
                unreadable += 1
                problems.append(f"{path.name}:{line}: {row}")
            elif _passes(row, where):
                kept.append((f"{path.name}:{line}", row))
    if not total:
        problems.append(
            f"{paths[0].name} is empty; fill it, or remove it if there is no such split"
        )
    elif not kept and not unreadable:
        problems.append(
            f"{paths[0].name}: none of its {total} rows passes where={dict(where)}"
        )
    return kept


def _passes(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    for column, wanted in where.items():
        values = wanted if isinstance(wanted, list | tuple) else [wanted]
        # A CSV cell is a string whatever the filter holds.
        if str(row.get(column)) not in [str(v) for v in values]:
            return False
    return True


def _raw_row(task: Task, row: Row) -> dict[str, Any]:
    target = row["target"]
    raw = {k: v for k, v in row.items() if k != "target"}
    if task.kind == "single_label":
        return raw | {"label": task.labels[target]}
    if task.kind == "multi_label":
        return raw | {"labels": [task.labels[i] for i in target]}
    if task.kind == "token":
        return raw | {"tags": [task.labels[i] for i in target]}
    if task.kind == "choice":
        return raw | {"label": row["choices"][target]}
    return raw | {"answers" if task.kind == "span" else "target": target}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
