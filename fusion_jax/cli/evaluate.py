"""fusion-jax evaluate: scores of any model directory on a task folder."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", help="model directory, package:NAME/DIR or hub id")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="the task's folder"
    )
    parser.add_argument(
        "--split",
        choices=("train", "dev", "test"),
        help="test, or dev where there is no test, without it",
    )
    parser.add_argument(
        "--max-length", type=int, default=128, help="tokens of an input; 128 without it"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the computation",
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
