"""fusion-jax evaluate: scores of any model directory on a task folder."""

import argparse
import json

from fusion_jax.cli.models import add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_model_arguments(parser)
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="the task's folder"
    )
    parser.add_argument(
        "--split",
        choices=("train", "dev", "test"),
        help="test, or dev where there is no test, without it",
    )


def run(options: argparse.Namespace) -> None:
    """Scores the model and prints a row, or a JSON object."""
    from fusion_jax import runtime
    from fusion_jax.cli.tables import evaluation_table
    from fusion_jax.systems.saved_model import evaluate

    runtime.initialize()
    record = evaluate(
        options.model,
        options.data,
        split=options.split,
        max_length=options.max_length,
        dtype=options.dtype,
    )
    print(json.dumps(record) if options.json else evaluation_table(record), end="")
    if options.json:
        print()
