"""Tasks from the datasets library: a hub id, or a folder that it wrote."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.data.assemble import assemble, merge_options
from fusion_jax.data.rows import RowForm
from fusion_jax.data.task import Task, TaskError

SPLITS = {"train": "train", "validation": "dev", "dev": "dev", "test": "test"}


def from_datasets(
    id_or_path: str | os.PathLike[str],
    *,
    subset: str | None = None,
    name: str | None = None,
    splits: Mapping[str, str] | None = None,
    revision: str | None = None,
    **options: Any,
) -> Task:
    """A task from a data set of the hub, or from a `save_to_disk` folder.

    Args:
      id_or_path: 'owner/name' on the hub, or a folder.
      subset: configuration of the data set ('rte' of 'nyu-mll/glue', say).
      name: name of the task; made of id and subset if None.
      splits: their split -> 'train', 'dev' or 'test'; by default the usual names.
      revision: commit of the data set.
      **options: kind, columns, labels, label_map, where, metrics, unscored_labels,
        decision, or text=, text_pair=, context=, label= for a single column; as in a
        folder's task.json. Label names come from the data set's features if it has
        them.

    Returns:
      The task. A split whose labels are all -1 (hidden) is left out with a warning.

    Raises:
      TaskError: the data set cannot be had, has none of the splits, or has bad rows.
    """
    loaded = _load(id_or_path, subset, revision)
    source = f"{id_or_path}" + (f"/{subset}" if subset else "")
    merged = merge_options(source, [("options", options)])
    wanted = SPLITS if splits is None else splits
    chosen = {theirs: ours for theirs, ours in wanted.items() if theirs in loaded}
    if not chosen:
        raise TaskError(
            f"{source}: has the splits {', '.join(loaded)}; name them by splits="
            "{theirs: 'train' | 'dev' | 'test'}"
        )
    twice = [s for s in set(chosen.values()) if [*chosen.values()].count(s) > 1]
    if twice:
        raise TaskError(
            f"{source}: several splits stand for {', '.join(twice)}; name "
            "one of them by splits="
        )

    form = RowForm("", {}, merged["columns"])
    features = next(iter(loaded[s].features for s in chosen))
    column, names = _class_names(form, features)
    where = merged.get("where", {})
    raw = {}
    for theirs, ours in chosen.items():
        rows = []
        for number, row in enumerate(loaded[theirs]):
            if any(row.get(k) != v for k, v in where.items()):
                continue
            rows.append((f"{theirs} row {number}", _named(dict(row), column, names)))
        if rows and all(row.get(column or "label") == -1 for _, row in rows):
            warnings.warn(
                f"{source}: the labels of {theirs} are hidden; it is left out",
                UserWarning,
                stacklevel=2,
            )
        else:
            raw[ours] = rows
    return assemble(source, name or source.replace("/", "_"), raw, merged, labels=names)


def _load(
    id_or_path: str | os.PathLike[str], subset: str | None, revision: str | None
) -> Mapping[str, Any]:
    import datasets

    folder = Path(id_or_path)
    # A folder may hold a copy of each subset under the subset's name.
    if subset and (folder / subset).is_dir():
        folder = folder / subset
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))  # pyright: ignore
        if (folder / "state.json").is_file():
            return {"train": datasets.load_from_disk(str(folder))}
        return datasets.load_dataset(  # pyright: ignore
            str(id_or_path), subset, revision=revision
        )
    except Exception as error:
        raise TaskError(
            f"{id_or_path}: the datasets library cannot load it "
            f"({type(error).__name__}: {error}); give a hub id (with a connection or a "
            "filled cache) or a folder written by save_to_disk"
        ) from error


def _class_names(
    form: RowForm, features: Mapping[str, Any]
) -> tuple[str | None, list[str] | None]:
    """The label column and the class names that the features hold, if they do."""
    for field in ("tags", "labels", "label"):
        column = form.columns.get(field, field)
        feature = features.get(column)
        feature = getattr(feature, "feature", feature)  # of a list of classes
        names = getattr(feature, "names", None)
        if names:
            return column, list(names)
    return None, None


def _named(
    row: dict[str, Any], column: str | None, names: Sequence[str] | None
) -> dict[str, Any]:
    """The row with class names for class numbers; -1 stays."""
    if column is None or names is None or row.get(column) is None:
        return row

    def name(number: Any) -> Any:
        return names[number] if isinstance(number, int) and number >= 0 else number

    value = row[column]
    row[column] = [name(v) for v in value] if isinstance(value, list) else name(value)
    return row
