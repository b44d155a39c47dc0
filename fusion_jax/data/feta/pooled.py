"""Unsplit task folders: all rows of all files of a task, to be split by scene.

The official splits of the single tasks know nothing of each other, so a scene of the
benchmark's test part may lie in any of their files: only the pooled rows count.
"""

from pathlib import Path
from typing import Any

from fusion_jax.data.feta.pooled_readers import READERS, Rows
from fusion_jax.data.files import read_rows
from fusion_jax.data.task import TaskError, report

_DIALOGUES = "dialogues"


def row_files(folder: Path) -> dict[str, Path]:
    """Files of a task folder by split; README and labels are not among them."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.removesuffix(".gz")
        if name.endswith(".jsonl"):
            split = name.removesuffix(".jsonl")
            if split in files:
                raise TaskError(
                    f"{folder}: {files[split].name} and {path.name} are the same "
                    "split in two forms; remove one"
                )
            files[split] = path
    return files


def pool_rows(name: str, folder: Path) -> Rows:
    """Normalised rows of all files of the task `name`, in file order.

    'group' is the scene ('' = unknown; the dialogue for relations); '_split' is the
    file a row came from, and '_known_test' says that it lies in a test scene.

    Raises:
      TaskError: the folder has no rows, or lists the rows (file:line) that are not in
        the task's form.
    """
    files = row_files(folder)
    faults: list[str] = []
    located: list[tuple[str, str, dict[str, Any]]] = []
    for split, path in files.items():
        for line, row in read_rows(path):
            place = f"{path.name}:{line}"
            if isinstance(row, str):
                faults.append(f"{place}: {row}")
            else:
                located.append((place, split, row))
    dialogues = {
        row["dialogue_id"]: row
        for _, split, row in located
        if split == _DIALOGUES and "dialogue_id" in row
    }
    located = [entry for entry in located if entry[1] != _DIALOGUES]
    if not located and not faults:
        raise TaskError(f"{folder}: no .jsonl or .jsonl.gz file with rows")
    rows: Rows = []
    try:
        reader = READERS[name]([row for _, _, row in located], dialogues)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise TaskError(
            f"{folder}: not in the form of {name}: {_what(error)}"
        ) from error
    for place, split, row in located:
        try:
            made = reader(row)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            faults.append(f"{place}: {_what(error)}")
        else:
            if made is not None:
                made["_split"] = split
                made["_known_test"] = row.get("feta_test_scene") is True
                rows.append(made)
    if faults:
        raise TaskError(report(f"{folder}", faults))
    return rows


def _what(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no column {error.args[0]!r}"
    return str(error)
