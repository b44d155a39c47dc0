"""fusion-jax dfwe: DFWE on task folders, or as a config file says."""

import argparse

from fusion_jax.cli.runs import add_run_arguments, make_config, names, run_and_tell

FIELDS = {
    "target": "targets",
    "sources": "sources",
    "source_shots": "source_shots",
    "experts": "experts",
    "seeds": "seeds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_run_arguments(parser, "dfwe", "folder that holds the task folders")
    parser.add_argument(
        "--target", type=names, metavar="A[+B]", help="task, or several; all without it"
    )
    parser.add_argument(
        "--sources",
        type=names,
        metavar="A+B",
        help="tasks; all but the target without it; auto:3 takes the three nearest",
    )
    parser.add_argument("--source-shots", type=int, help="rows of each source, in all")
    parser.add_argument(
        "--experts",
        type=names,
        metavar="DIR+DIR",
        help="models fine-tuned on the target; skips training",
    )
    parser.add_argument(
        "--seeds", type=int, help="runs with seeds from --seed on; 1 without it"
    )


def run(options: argparse.Namespace) -> None:
    """Runs the system and prints its table."""
    from fusion_jax.systems import dfwe
    from fusion_jax.systems.folders import dfwe_on_folders

    run_and_tell(options, dfwe, make_config(options, dfwe_on_folders, FIELDS))
