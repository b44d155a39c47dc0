"""fusion-jax task-selection: sources ranked by divergences, held against transfer."""

import argparse

from fusion_jax.cli.runs import add_run_arguments, make_config, names, run_and_tell

FIELDS = {
    "tasks": "tasks",
    "measures": "measures",
    "order": "order",
    "pairs": "pairs",
    "keep": "keep",
    "few_shot": "few_shot",
    "shots": "rows",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_run_arguments(
        parser, "task_selection", "folder that holds the task folders, of one label set"
    )
    parser.add_argument(
        "--tasks", type=names, metavar="A+B", help="tasks; all folders without it"
    )
    parser.add_argument(
        "--measures",
        type=names,
        metavar="kl_reversed+mmd",
        help="divergences; all without it",
    )
    parser.add_argument(
        "--order",
        help="the divergence by which sources are kept, or fusion of all; "
        "without it kl_reversed, or what suits --measures",
    )
    parser.add_argument(
        "--pairs",
        choices=("all", "kept"),
        help="tune all pairs, to judge the divergences (default), or the kept alone",
    )
    parser.add_argument(
        "--keep", type=float, help="fraction of each target's sources that is kept"
    )
    parser.add_argument(
        "--few-shot",
        type=int,
        help="labelled rows of a target on which kept pairs are tuned further",
    )


def run(options: argparse.Namespace) -> None:
    """Runs the system and prints its table."""
    from fusion_jax.reports.selection_tables import told
    from fusion_jax.systems import task_selection
    from fusion_jax.systems.folders import selection_on_folders

    config = make_config(options, selection_on_folders, FIELDS)
    run_and_tell(options, task_selection, config, told)
