"""A run of several parts, targets or groups or folds times seeds: its one record."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.processes import write_once
from fusion_jax.reports.html import write_report
from fusion_jax.systems.result import Result


def joined(
    parts: Sequence[Result],
    folder: Path,
    config: dict[str, Any],
    many_results: Callable[[Sequence[dict[str, Any]], dict[str, Any]], dict[str, Any]],
) -> Result:
    """The only part itself, or a record and a report over all of them.

    Args:
      parts: finished, each with its results.json in a folder of its own, or, if there
        is one alone, in `folder`.
      folder: of the run; results.json is written last.
      config: plain values.
      many_results: `(results of the parts, config) -> results`.
    """
    if len(parts) == 1:
        return parts[0]
    return recorded(many_results([part.results for part in parts], config), folder)


def recorded(
    results: dict[str, Any],
    folder: Path,
    report: Callable[[Any, Path], Any] = lambda results, file: write_report(
        results, None, file
    ),
) -> Result:
    """Writes report.html, then results.json, which says that all is there.

    Args:
      results: the record of a run that leaves no model of its own.
      folder: of the run.
      report: `(results, file)` writes the report.
    """

    def write() -> None:
        report(results, folder / "report.html")
        atomic.write_json(folder / "results.json", results)

    write_once(str(folder), write)
    return Result(results, folder, None)
