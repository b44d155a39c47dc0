"""fusion-jax cold-fusion: contributors evolve one base, simulated on one machine."""

import argparse

from fusion_jax.cli.runs import add_run_arguments, make_config, names, run_and_tell

FIELDS = {
    "tasks": "tasks",
    "rounds": "rounds",
    "contributors": "contributors",
    "folds": "folds",
    "fold": "fold",
    "few_shot": "few_shot",
    "method": "fuse.method",
    "server_rate": "fuse.server_rate",
    "repository": "repository",
    "seeds": "seeds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_run_arguments(
        parser, "cold_fusion", "folder that holds the task folders, one a contributor"
    )
    parser.add_argument(
        "--tasks", type=names, metavar="A+B", help="tasks; all folders without it"
    )
    parser.add_argument("--rounds", type=int, help="rounds; 10 without it")
    parser.add_argument(
        "--contributors", type=int, help="tasks drawn for each round; 8 without it"
    )
    parser.add_argument(
        "--folds",
        type=int,
        help="keep one of so many parts of the tasks unseen; without it all contribute",
    )
    parser.add_argument(
        "--fold", type=int, help="which part is unseen, from 0; each in turn without it"
    )
    parser.add_argument(
        "--few-shot",
        type=int,
        help="training rows of the few-shot evaluation; 100 without it",
    )
    parser.add_argument(
        "--method", help="how bodies are fused: mean (default) or any merge by name"
    )
    parser.add_argument(
        "--server-rate",
        type=float,
        help="share of the way from the base to the fused bodies; 1 without it",
    )
    parser.add_argument(
        "--repository",
        metavar="URL",
        help="folder or bucket of the weights; WORKDIR/repository without it",
    )
    parser.add_argument(
        "--seeds", type=int, help="runs with seeds from --seed on; 1 without it"
    )


def run(options: argparse.Namespace) -> None:
    """Runs the system and prints its table."""
    from fusion_jax.systems import cold_fusion
    from fusion_jax.systems.folders import cold_on_folders

    run_and_tell(options, cold_fusion, make_config(options, cold_on_folders, FIELDS))
