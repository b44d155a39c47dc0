"""fusion-jax finetune: one encoder, or a module beside it, on one task."""

import argparse

from fusion_jax.cli.runs import add_run_arguments, make_config, run_and_tell

FIELDS = {
    "epochs": "fit.epochs",
    "batch_size": "fit.batch_size",
    "learning_rate": "fit.learning_rate",
    "peft": "peft.kind",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_run_arguments(parser, "finetune", "the task's folder")
    parser.add_argument("--epochs", type=int, help="passes over the training rows")
    parser.add_argument("--batch-size", type=int, help="rows a step")
    parser.add_argument("--learning-rate", type=float, help="peak rate")
    parser.add_argument(
        "--peft",
        metavar="KIND",
        help="train a module beside the frozen encoder: lora, ia3, adapter, ...; its "
        "options by --set peft.NAME=VALUE",
    )


def run(options: argparse.Namespace) -> None:
    """Runs the system and prints its scores."""
    from fusion_jax.cli.tables import finetune_table
    from fusion_jax.systems import finetune
    from fusion_jax.systems.folders import finetune_on_folder

    config = make_config(options, finetune_on_folder, FIELDS)
    run_and_tell(options, finetune, config, finetune_table)
