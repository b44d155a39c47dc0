"""fusion-jax inspect: how far models are from each other, before they are merged."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="model directories of one architecture, or hub ids",
    )
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="what they were fine-tuned from; the mean of the models without it",
    )
    parser.add_argument(
        "--by", choices=("layer", "tensor"), default="layer", help="rows of the table"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="also write inspect.html, inspect.json, cosine.png and norms.png there",
    )


def run(options: argparse.Namespace) -> None:
    """Prints tables, findings and advice, or a JSON object."""
    from fusion_jax.checkpoints.inspection.inspect import inspect
    from fusion_jax.checkpoints.sources import resolve
    from fusion_jax.cli.failures import WrongUsage
    from fusion_jax.reports.inspection import record, write_inspection

    if len(options.models) == 1 and options.base is None:
        raise WrongUsage("one model has nothing to be compared with: give --base DIR")
    inspection = inspect(
        [resolve(model) for model in options.models],
        None if options.base is None else resolve(options.base),
        by=options.by,
    )
    files = write_inspection(inspection, options.out) if options.out else []
    if options.json:
        print(json.dumps(record(inspection), allow_nan=False))
        return
    print(_text(inspection))
    for file in files:
        print(f"{file.name + ':':<14}{file}")


def _text(inspection) -> str:
    from fusion_jax.checkpoints.inspection.advice import advice
    from fusion_jax.reports import inspection_tables as tables
    from fusion_jax.reports.inspection import headline
    from fusion_jax.reports.tables import to_text

    parts = [headline(inspection) + "\n", to_text(tables.models_table(inspection))]
    if inspection.pairs:
        parts.append(to_text(tables.pairs_table(inspection)))
    parts.append(to_text(tables.groups_table(inspection)))
    findings = [
        f"{kind}: {what}\n" for kind, what in tables.findings_table(inspection).rows
    ]
    said = [f"- {line}\n" for line in advice(inspection)]
    return "\n".join([*parts, *filter(None, ["".join(findings), "".join(said)])])
