"""What a command prints: text for people, or JSON for machines."""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any


def tell(options: argparse.Namespace, record: Mapping[str, Any], text: str) -> None:
    """Prints the record where --json was given, else the text."""
    print(json.dumps(record) if options.json else text)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Takes --json and --quiet behind an action too, where people type them."""
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print JSON for machines",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the result and nothing else",
    )


def table_text(
    rows: Mapping[str, Mapping[str, Any]],
    line: Callable[[Mapping[str, Any]], str],
    as_json: bool,
) -> str:
    """A table of methods: a line each behind its name, or all as JSON.

    Args:
      rows: name -> what is told of it.
      line: `(row) -> text`.
      as_json: for machines.
    """
    if as_json:
        return json.dumps(rows)
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {line(row)}" for name, row in rows.items())


def run_text(result: Any, table: Callable[[Any], str] | None = None) -> str:
    """What a finished run says: its table, and where report, module and model lie.

    Args:
      result: a `systems.result.Result`.
      table: `(results) -> text`; by default the table of methods.
    """
    from fusion_jax.reports.tables import results_table, to_text

    results, folder = result.results, result.workdir
    lines = [table(results) if table else to_text(results_table(results)), ""]
    lines.append(f"report: {folder / 'report.html'}")
    module = results.get("module")
    if module is not None:
        lines.append(f"module: {folder / 'module'}")
        if not module["merged"]:
            lines.append(
                f"no model: {module['kind']} modules cannot be merged, "
                f"{module['why_not_merged']}"
            )
    model = folder / "model"
    if model.is_dir():
        lines.append(f"model:  {model}")
    elif any(folder.glob("*/seed_*/model")):
        lines.append(f"models: {folder}/<run>/seed_<s>/model")
    return "\n".join(lines)
