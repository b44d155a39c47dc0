"""fusion-jax dataless-fusion: models of several owners merged without their data."""

import argparse

from fusion_jax.cli.runs import add_run_arguments, make_config, names, run_and_tell

FIELDS = {
    "tasks": "tasks",
    "out_of_domain": "out_of_domain",
    "labels": "labels",
    "merge": "merge",
    "experts": "experts",
    "seeds": "seeds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_run_arguments(
        parser, "dataless_fusion", "folder that holds the task folders, one an owner"
    )
    parser.add_argument(
        "--tasks", type=names, metavar="A+B", help="owners; all folders without it"
    )
    parser.add_argument(
        "--out-of-domain",
        type=names,
        metavar="C+D",
        help="tasks of one label space with the owners', tested and never trained on",
    )
    parser.add_argument(
        "--labels",
        choices=("shared", "private"),
        help="one label space, so that heads are merged too (default), or own heads",
    )
    parser.add_argument(
        "--merge",
        type=names,
        metavar="pairs+all+leave_one_out",
        help="which owners are merged together; all without it",
    )
    parser.add_argument(
        "--experts",
        type=names,
        metavar="DIR+DIR",
        help="fine-tuned models, one a task in this order; skips training",
    )
    parser.add_argument(
        "--seeds", type=int, help="runs with seeds from --seed on; 1 without it"
    )


def run(options: argparse.Namespace) -> None:
    """Runs the system and prints its table."""
    from fusion_jax.systems import dataless_fusion
    from fusion_jax.systems.folders import dataless_on_folders

    config = make_config(options, dataless_on_folders, FIELDS)
    run_and_tell(options, dataless_fusion, config)
