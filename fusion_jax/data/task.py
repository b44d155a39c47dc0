"""A task: what is asked, of which rows, and how the answer is scored."""

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

KINDS = ("single_label", "multi_label", "choice", "span", "token", "text_to_text")
SPLITS = ("train", "dev", "test")

Row = dict[str, Any]


class TaskError(ValueError):
    """A task or its files are not in the form that the reader expects."""


@dataclass(frozen=True)
class Task:
    """A named task with its rows.

    Attributes:
      name: short name; also names the task's experts.
      kind: one of `KINDS`; says how 'target' is read, which head answers, and which
        loss and metrics apply.
      labels: class names in class-id order (tags for 'token'; empty for 'choice',
        'span' and 'text_to_text').
      metrics: names of the metrics whose mean is the score; () = the kind's default.
      splits: 'train', 'dev', 'test' (any may be absent) -> rows. A row has 'text';
        optional 'text_pair', 'context' (earlier text; cut from its left when long),
        'group' (dialogue or scene); 'tokens' for 'token', 'choices' for 'choice'; and
        'target': class id | tuple of class ids | tuple of tag ids | tuple of
        {'text', 'start'} with the character offset in 'context', -1 if unknown |
        index into 'choices' | string.
      unscored_labels: class names that metrics leave out.
      decision: '' (sigmoid above one half), or 'softmax:0.1': a multi-label row gets
        the classes whose softmax passes 0.1, or the largest one.
      origin: where the rows came from, for reports; no part of the hash.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: Mapping[str, tuple[Row, ...]] = field(repr=False)
    unscored_labels: tuple[str, ...] = ()
    decision: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        """Raises `TaskError` with everything that is wrong with the task."""
        problems = _problems(self)
        if problems:
            raise TaskError(report(f"task {self.name!r}", problems))

    @property
    def num_labels(self) -> int:
        """C: classes, tags, or (choice) the most candidates of any row."""
        if self.kind == "choice":
            return max(len(r["choices"]) for rows in self.splits.values() for r in rows)
        return len(self.labels)

    def rows(self, split: str) -> tuple[Row, ...]:
        """The rows of a split that must be there.

        Raises:
          TaskError: the task has no such split; says which it has.
        """
        if split not in self.splits:
            hint = (
                "; if the folder has a train_partial file, load it with use_partial"
                if split == "train"
                else ""
            )
            raise TaskError(
                f"task {self.name!r} has no {split} split, only "
                f"{', '.join(self.splits) or 'none at all'}{hint}"
            )
        return self.splits[split]


def few_shot(task: Task, shots: int, seed: int) -> Task:
    """The task with `shots` training rows in all and a dev split to match.

    Both splits are drawn without replacement, stratified by class (largest remainder;
    each class keeps a row while there are rows enough), and keep their order. Dev is
    cut to max(shots / 4, 64) rows. Test is untouched.

    Raises:
      TaskError: no train split, or fewer rows in it than asked for.
    """
    train = task.rows("train")
    if not 1 <= shots <= len(train):
        raise TaskError(
            f"task {task.name!r} has {len(train)} training rows; shots={shots} must "
            f"lie between 1 and {len(train)}"
        )
    splits = dict(task.splits)
    splits["train"] = _draw(task, "train", shots, seed)
    if "dev" in splits:
        size = min(len(splits["dev"]), max(shots // 4, 64))
        splits["dev"] = _draw(task, "dev", size, seed)
    return replace(task, splits=splits)


def split_off_dev(task: Task, seed: int, fraction: float = 0.1) -> Task:
    """The task with a seeded tenth of train as dev, if it has none.

    Rows of one 'group' stay on one side where every row names its group (and there are
    groups enough); else the cut is stratified by class.

    Raises:
      TaskError: train is missing or has a single row.
    """
    if "dev" in task.splits:
        return task
    train = task.rows("train")
    if len(train) < 2:
        raise TaskError(f"task {task.name!r}: a single training row leaves no dev")
    size = max(1, round(fraction * len(train)))
    groups = [row.get("group") for row in train]
    if all(g is not None for g in groups) and len(set(groups)) >= 10:
        chosen = _whole_groups(groups, size, _generator(seed, task.name, "dev"))
    else:
        chosen = _stratified(task, train, size, _generator(seed, task.name, "dev"))
    held = set(chosen)
    splits = {
        "train": tuple(r for i, r in enumerate(train) if i not in held),
        "dev": tuple(train[i] for i in chosen),
    }
    return replace(
        task, splits=splits | {k: v for k, v in task.splits.items() if k not in splits}
    )


def hash_task(task: Task) -> str:
    """Sha256 of everything in the task but its name and origin, in hexadecimal."""
    digest = hashlib.sha256()
    head = (task.kind, task.labels, task.metrics, task.unscored_labels, task.decision)
    digest.update(json.dumps(head).encode())
    for split in sorted(task.splits):
        digest.update(f"\n{split}\n".encode())
        for row in task.splits[split]:
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def report(what: str, problems: Sequence[str], limit: int = 10) -> str:
    """One message for many problems: the count and the first `limit` of them."""
    more = f"\n  and {len(problems) - limit} more" if len(problems) > limit else ""
    noun = "problem" if len(problems) == 1 else "problems"
    lines = "\n  ".join(problems[:limit])
    return f"{what}: {len(problems)} {noun}\n  {lines}{more}"


def target_labels(kind: str, target: Any) -> tuple[int, ...]:
    """Class ids that a target names; () for kinds without classes."""
    if kind == "single_label":
        return (target,)
    return tuple(target) if kind in ("multi_label", "token") else ()


def _problems(task: Task) -> list[str]:
    if task.kind not in KINDS:
        return [f"kind {task.kind!r} is not one of {', '.join(KINDS)}"]
    found = []
    if len(set(task.labels)) != len(task.labels):
        found.append("a label name occurs twice; class names must differ")
    if not task.labels and task.kind in ("single_label", "multi_label", "token"):
        found.append(f"a {task.kind} task needs label names; give labels.json")
    for name in task.unscored_labels:
        if name not in task.labels:
            found.append(f"unscored label {name!r} is not one of the labels")
    if not task.splits:
        found.append("no split; give at least one of train, dev, test")
    for split, rows in task.splits.items():
        if split not in SPLITS:
            found.append(f"split {split!r} is not one of {', '.join(SPLITS)}")
        if not rows:
            found.append(
                f"split {split} is there but has no rows; leave it out or fill it"
            )
        for number, row in enumerate(rows):
            wrong = _wrong_row(task, row)
            if wrong:
                found.append(f"{split} row {number}: {wrong}")
    return found


def _wrong_row(task: Task, row: Row) -> str:
    target = row.get("target")
    if not isinstance(row.get("text"), str):
        return "'text' must be a string"
    if task.kind == "token" and len(row.get("tokens", ())) != len(target or ()):
        return "'tokens' and 'target' must have one length"
    if task.kind == "span" and not isinstance(row.get("context"), str):
        return "a span row needs 'context', the text that holds the answer"
    if task.kind == "choice":
        choices = row.get("choices", ())
        if not isinstance(target, int) or not 0 <= target < len(choices):
            return f"'target' {target!r} is no index into its {len(choices)} choices"
    for label in target_labels(task.kind, target):
        if not isinstance(label, int | np.integer) or not 0 <= label < len(task.labels):
            return f"'target' {label!r} is no class id below {len(task.labels)}"
    return ""


def _generator(seed: int, *names: str) -> np.random.Generator:
    words = [seed, *(zlib.crc32(name.encode()) for name in names)]
    return np.random.Generator(np.random.PCG64(words))


def _draw(task: Task, split: str, size: int, seed: int) -> tuple[Row, ...]:
    rows = task.splits[split]
    chosen = _stratified(task, rows, size, _generator(seed, task.name, split))
    return tuple(rows[i] for i in chosen)


def _stratum(kind: str) -> Callable[[Row], Hashable]:
    # A multi-label row counts under its first class: strata by label set would be
    # nearly as many as rows. Other kinds have no classes that rows share.
    if kind == "single_label":
        return lambda row: row["target"]
    if kind == "multi_label":
        return lambda row: row["target"][0] if row["target"] else -1
    return lambda row: 0


def _stratified(
    task: Task, rows: Sequence[Row], size: int, generator: np.random.Generator
) -> list[int]:
    key = _stratum(task.kind)
    strata: dict[Hashable, list[int]] = {}
    for number, row in enumerate(rows):
        strata.setdefault(key(row), []).append(number)
    order = sorted(strata, key=str)
    # Every class first gets its one row, if all can; the rest is shared in proportion.
    floor = 1 if size >= len(order) else 0
    spare = size - floor * len(order)
    room = sum(len(strata[k]) - floor for k in order)
    exact = {k: spare * (len(strata[k]) - floor) / max(room, 1) for k in order}
    quota = {k: floor + math.floor(exact[k]) for k in order}
    ties = dict(zip(order, generator.permutation(len(order)), strict=True))
    by_rest = sorted(order, key=lambda k: (math.floor(exact[k]) - exact[k], ties[k]))
    for k in by_rest[: size - sum(quota.values())]:
        quota[k] += 1
    chosen = [
        int(i) for k in order for i in generator.permutation(strata[k])[: quota[k]]
    ]
    return sorted(chosen)


def _whole_groups(
    groups: Sequence[Hashable], size: int, generator: np.random.Generator
) -> list[int]:
    names = sorted(set(groups), key=str)
    chosen: list[int] = []
    for g in generator.permutation(len(names)):
        if len(chosen) >= size:
            break
        chosen += [i for i, name in enumerate(groups) if name == names[g]]
    return sorted(chosen)
