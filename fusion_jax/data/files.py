"""Raw rows of a task's folder: which files hold a split, and what they hold."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusion_jax.data.task import TaskError

FORMS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
SPLIT_NAMES = {
    "train": ("train",),
    "dev": ("dev", "validation"),
    "test": ("test",),
}


def find_splits(folder: Path, *, use_partial: bool = False) -> dict[str, list[Path]]:
    """The files of each split that is there.

    Args:
      folder: a task's folder.
      use_partial: count `train_partial` as (part of) train.

    Returns:
      split -> files, in the order in which their rows are joined.

    Raises:
      TaskError: no such folder, no split in it, or one split in two forms.
    """
    if not folder.is_dir():
        raise TaskError(f"{folder}: no such folder; give the folder of one task")
    found: dict[str, list[Path]] = {}
    doubled = []
    partial = ("train_partial",)
    for split, names in [*SPLIT_NAMES.items(), ("train_partial", partial)]:
        files = [p for n in names for f in FORMS if (p := folder / (n + f)).is_file()]
        if len(files) > 1:
            doubled.append(f"{split}: {', '.join(p.name for p in files)}")
        if files:
            found[split] = files[:1]
    if doubled:
        raise TaskError(
            f"{folder}: one split in two forms ({'; '.join(doubled)}); keep one of them"
        )
    extra = found.pop("train_partial", [])
    if use_partial and extra:
        found = {"train": found.get("train", []) + extra} | {
            k: v for k, v in found.items() if k != "train"
        }
    if not found:
        note = (
            " (there is a train_partial file, read only with use_partial)"
            if extra
            else ""
        )
        raise TaskError(
            f"{folder}: no task here: none of train, dev, test as "
            f"{', '.join(FORMS)}{note}"
        )
    return found


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    r"""Yields (line number, row), or (line number, what is wrong with the line).

    Lines end at '\n' alone, so that texts may hold other Unicode line breaks. Blank
    lines are passed over.

    Raises:
      TaskError: the file as a whole cannot be read (a cut-off gzip file, say).
    """
    opener = gzip.open if path.suffix == ".gz" else open
    read = _read_csv if ".csv" in path.suffixes[-2:] else _read_jsonl
    try:
        with opener(path, "rb") as file:
            yield from read(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TaskError(
            f"{path}: the gzip file is damaged or cut off ({error}); fetch it again"
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise TaskError(f"{path}: not JSON ({error}); correct it") from error


def _read_jsonl(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield number, f"not UTF-8 ({error.reason} at byte {error.start})"
        except ValueError as error:
            yield number, f"not JSON ({error})"
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                yield number, "not a JSON object; one object a line is expected"


def _read_csv(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text)
    try:
        for row in reader:
            number = reader.line_num
            if None in row:
                yield number, "more cells than the header has columns"
            elif None in row.values():
                yield number, "fewer cells than the header has columns"
            else:
                yield number, {k: v for k, v in row.items() if v != ""}
    except (csv.Error, UnicodeDecodeError) as error:
        yield reader.line_num + 1, f"cannot be read further ({error})"
