"""Scores of one model as text: a row a split, a column a metric."""

from collections.abc import Mapping
from typing import Any

from fusion_jax.reports.tables import Table, interval, number, to_text


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
