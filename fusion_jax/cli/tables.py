"""Scores of one model as text: a row a split, a column a metric; and where it lies."""

from collections.abc import Mapping
from typing import Any

from fusion_jax.reports.tables import Table, interval, number, to_text
from fusion_jax.systems.result import Result


def finetune_table(results: Mapping[str, Any]) -> str:
    """The scores of a fine-tune's results.json."""
    scores = results["methods"]["finetune"]
    rows = {
        split: (scores[split], bounds, results["metrics"][split])
        for split, bounds in (("dev", None), ("test", scores["test_interval"]))
        if scores[split] is not None
    }
    note = "" if "test" in rows else "The task has no test split: dev alone is scored."
    return _table(rows, note)


def finetune_places(result: Result) -> str:
    """Where a fine-tune left its report, its model and its module."""
    module = result.results["module"]
    lines = [f"report: {result.workdir / 'report.html'}"]
    if module is not None:
        lines.append(f"module: {result.workdir / 'module'}")
    if module is None or module["merged"]:
        lines.append(f"model:  {result.workdir / 'model'}")
    else:
        lines.append(
            f"no model: a {module['kind']} module cannot be merged, "
            f"{module['why_not_merged']}"
        )
    return "\n".join(lines)


def evaluation_table(record: Mapping[str, Any]) -> str:
    """The scores of `systems.saved_model.evaluate`."""
    row = (record["score"], record["interval"], record["metrics"])
    return _table({record["split"]: row}, f"{record['rows']} rows of {record['task']}")


def _table(
    rows: Mapping[str, tuple[float, Any, Mapping[str, float]]], note: str
) -> str:
    metrics = next(iter(rows.values()))[2]
    lines = tuple(
        (split, number(score), interval(bounds), *map(number, values.values()))
        for split, (score, bounds, values) in rows.items()
    )
    return to_text(Table(("split", "score", "95 % interval", *metrics), lines, note))
