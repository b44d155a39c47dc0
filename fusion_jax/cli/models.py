"""Arguments of the commands that take one model."""

import argparse


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and how it reads and computes."""
    parser.add_argument("model", help="model directory, package:NAME/DIR or hub id")
    parser.add_argument(
        "--max-length", type=int, default=128, help="tokens of an input; 128 without it"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the computation",
    )
