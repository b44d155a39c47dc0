"""Raw rows of any source into a Task: kind, labels, row forms, all problems at once."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusion_jax.data.dialogues import Dialogue
from fusion_jax.data.rows import COLUMNS, RowForm, as_list, infer_kind, normalise
from fusion_jax.data.task import KINDS, Row, Task, TaskError, report, target_labels

OPTIONS = (
    "kind", "metrics", "labels", "columns", "where", "label_map", "unscored_labels",
    "decision", "origin",
)  # fmt: skip

RawSplits = Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
"""split -> (place of the row for messages, raw row)."""

Join = Callable[[Mapping[str, Any], RowForm], Dialogue | None]


def no_dialogue(raw: Mapping[str, Any], form: RowForm) -> Dialogue | None:
    """For sources whose rows point to no dialogues."""
    del raw, form


def merge_options(
    source: str, given: Sequence[tuple[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    """Options of a task from several places, the last of which wins.

    Args:
      source: the folder or data set, for the message.
      given: (place, options). A top-level 'text', 'text_pair', 'context' or 'label' is
        short for an entry of 'columns'.

    Raises:
      TaskError: lists unknown options, columns and kinds with the known ones.
    """
    merged: dict[str, Any] = {"columns": {}}
    problems = []
    for place, options in given:
        for key, value in options.items():
            if key in ("text", "text_pair", "context", "label"):
                merged["columns"] = {**merged["columns"], key: value}
            elif key == "columns":
                merged["columns"] = {**merged["columns"], **value}
            elif key in OPTIONS:
                merged[key] = value
            else:
                problems.append(
                    f"{place}: unknown option {key!r}; known are {', '.join(OPTIONS)}"
                )
    problems += [
        f"columns: {name!r} is not one of {', '.join(COLUMNS)}"
        for name in merged["columns"]
        if name not in COLUMNS
    ]
    kind = merged.get("kind")
    if kind is not None and kind not in KINDS:
        problems.append(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if problems:
        raise TaskError(report(source, problems))
    return merged


def assemble(
    source: str,
    name: str,
    raw: RawSplits,
    options: Mapping[str, Any],
    *,
    labels: Sequence[str] | None = None,
    join: Join = no_dialogue,
    problems: Sequence[str] = (),
) -> Task:
    """The Task of raw rows.

    Args:
      source: the folder or data set, for messages and as the origin.
      name: name of the task.
      raw: rows of each split.
      options: as `merge_options` gives them.
      labels: class names that come with the source; the option 'labels' wins, and
        without both the labels of the training rows are taken, sorted.
      join: finds the dialogue of a row.
      problems: what the reader found wrong already; reported with the rest.

    Raises:
      TaskError: lists every bad row by its place.

    Warns:
      UserWarning: labels that occur in dev or test and never in train.
    """
    try:
        form = _form(raw, options, labels, join)
    except ValueError as error:
        raise TaskError(report(source, [*problems, str(error)])) from error
    found = list(problems)
    splits: dict[str, tuple[Row, ...]] = {}
    for split, lines in raw.items():
        rows = []
        for place, line in lines:
            try:
                row = normalise(line, form, join(line, form))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                found.append(f"{place}: {error}")
            else:
                if row is not None:
                    rows.append(row)
        if lines and not rows and not found:
            found.append(f"{split}: label_map drops every row; keep some")
        splits[split] = tuple(rows)
    if found:
        raise TaskError(report(source, found))
    task = Task(
        name=name,
        kind=form.kind,
        labels=tuple(form.ids),
        metrics=tuple(options.get("metrics", ())),
        splits=splits,
        unscored_labels=tuple(options.get("unscored_labels", ())),
        decision=options.get("decision", ""),
        origin=options.get("origin", source),
    )
    _warn_untrained_labels(task)
    return task


def _form(
    raw: RawSplits,
    options: Mapping[str, Any],
    labels: Sequence[str] | None,
    join: Join,
) -> RowForm:
    columns, label_map = options["columns"], options.get("label_map", {})
    form = RowForm("", {}, columns, label_map)
    kind = options.get("kind")
    if kind is None:
        lines = (line for lines in raw.values() for line in lines)
        place, first = next(lines, (None, None))
        if first is None:
            raise ValueError("no row can be read, so no kind can be inferred")
        try:
            kind = infer_kind(first, form, join(first, form))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    form = RowForm(kind, {}, columns, label_map)
    if kind in ("choice", "span", "text_to_text"):
        return form
    names = options.get("labels") or labels or _label_names(raw, form)
    if not isinstance(names, list | tuple) or not all(
        isinstance(n, str) for n in names
    ):
        raise ValueError("labels must be a list of class names in class-id order")
    if len(set(names)) != len(names):
        raise ValueError("labels: a class name occurs twice; names must differ")
    ids = {name: number for number, name in enumerate(names)}
    return RowForm(kind, ids, columns, label_map)


def _label_names(raw: RawSplits, form: RowForm) -> list[str]:
    """Without a list, train says which classes there are."""
    column = {"multi_label": "labels", "token": "tags"}.get(form.kind, "label")
    names: set[str] = set()
    for _, line in raw.get("train") or next(iter(raw.values())):
        value = form.get(line, column)
        if value is None:
            continue
        for label in [value] if column == "label" else as_list(value):
            name = form.label_map.get(str(label), str(label))
            if name is not None:
                names.add(name)
    return sorted(names)


def _warn_untrained_labels(task: Task) -> None:
    if "train" not in task.splits:
        return
    seen = {
        split: {i for r in rows for i in target_labels(task.kind, r["target"])}
        for split, rows in task.splits.items()
    }
    later = set().union(*(ids for split, ids in seen.items() if split != "train"))
    missing = [task.labels[i] for i in sorted(later - seen["train"])]
    if missing:
        warnings.warn(
            f"task {task.name!r}: no training row has the labels "
            f"{', '.join(missing)}, which occur in dev or test; they cannot be learned",
            UserWarning,
            stacklevel=4,
        )
