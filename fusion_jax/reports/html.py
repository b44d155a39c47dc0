"""Writes the report of a run: one HTML file that loads nothing."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.reports import elements, many, portability, single
from fusion_jax.reports.methods import describe, main_method
from fusion_jax.reports.summary import summarise


def write_report(
    results: Mapping[str, Any],
    history: Mapping[str, Any] | None,
    path: str | os.PathLike[str],
) -> Path:
    """Writes the HTML report of one run, or of several targets and seeds.

    Args:
      results: what results.json holds. A portability study has a page of its own. With
        'runs' (a list, or a dict, of the results of single runs) it is the report of
        many; a run may name its own report, relative to `path`, in 'report' (default
        TARGET/seed_SEED/report.html).
      history: of one run: 'evaluations' (dicts with generation, index, coefficients,
        fitness, origin), 'means' ([K] or [G, K] a generation), 'plane' (see
        `plots.plane`) or None. What is missing is left out of the report.
      path: the file to write.

    Returns:
      The path.

    Raises:
      atomic.WriteFailed: the file cannot be written; what stood there is untouched.
      ValueError: 'runs' is there and empty.
    """
    target = Path(path)
    if results.get("system") == "portability":
        text = portability.page(results)
    elif "runs" in results:
        text = many_page(results)
    else:
        text = single_page(results, history)
    atomic.write_text(target, text)
    return target


def single_page(results: Mapping[str, Any], history: Mapping[str, Any] | None) -> str:
    """The document of one run."""
    title = f"{describe(main_method(results)).label} on {results['target']}"
    return elements.page(
        title,
        single.header(results),
        single.sections(results, history or {}),
        _footer(results),
    )


def many_page(results: Mapping[str, Any]) -> str:
    """The document of several targets or seeds."""
    runs = results["runs"]
    runs = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    summary = summarise(runs)
    label = describe(summary["method"]).label
    return elements.page(
        f"{label} on {len(summary['targets'])} targets",
        many.header(summary),
        many.sections(results, runs, summary),
        _footer(runs[0]),
    )


def _footer(results: Mapping[str, Any]) -> str:
    version = (results.get("versions") or {}).get("fusion_jax")
    name = f"fusion_jax {version}" if version else "fusion_jax"
    return (
        '<p>Every number of this page is in <a href="results.json">results.json</a>. '
        f"Written by {escape(name)}.</p>"
    )
