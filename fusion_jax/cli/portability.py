"""fusion-jax portability: what modules of one host are worth on another."""

import argparse

from fusion_jax.cli.failures import WrongUsage
from fusion_jax.cli.runs import add_run_arguments, make_config, names, run_and_tell

FIELDS = {
    "tasks": "tasks",
    "combinations": "combinations",
    "pairs": "pairs",
    "inits": "inits",
    "steps": "steps",
    "head": "head",
    "modules": "modules",
    "strict_host": "strict_host",
    "seeds": "seeds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_run_arguments(
        parser,
        "portability",
        "folder that holds the task folders, of one label space",
        encoder=False,
    )
    parser.add_argument(
        "--hosts",
        type=names,
        metavar="NAME=DIR+NAME=DIR",
        help="pretrained models to train on and to port to",
    )
    parser.add_argument(
        "--pairs",
        type=names,
        metavar="A:B+B:A",
        help="origin and receiver; all of different hosts without it",
    )
    parser.add_argument(
        "--tasks", type=names, metavar="C+D", help="all folders without it"
    )
    parser.add_argument(
        "--combinations",
        type=names,
        metavar="C:D+C:C",
        help="data of origin and receiver; all without it",
    )
    parser.add_argument(
        "--techniques",
        type=names,
        metavar="lora+adapter",
        help="of the config's; all without it",
    )
    parser.add_argument(
        "--inits", type=names, metavar="ported+scratch", help="the module and controls"
    )
    parser.add_argument(
        "--steps",
        type=lambda text: tuple(int(step) for step in names(text)),
        metavar="0+50+100",
        help="training steps after which is scored; 0 is zero-shot",
    )
    parser.add_argument(
        "--head",
        choices=("ported", "fresh"),
        help="whether the origin's head goes along with every init (default)",
    )
    parser.add_argument(
        "--modules",
        type=names,
        metavar="TECHNIQUE:HOST:TASK:SEED=DIR",
        help="modules that exist; those are not trained",
    )
    parser.add_argument(
        "--strict-host",
        action="store_const",
        const=True,
        help="refuse a module of another host; without it that is a warning",
    )
    parser.add_argument(
        "--seeds", type=int, help="runs with seeds from --seed on; 1 without it"
    )


def run(options: argparse.Namespace) -> None:
    """Runs the study and prints its table."""
    from fusion_jax.systems import portability
    from fusion_jax.systems.folders import portability_on_folders, take_names

    config = make_config(options, portability_on_folders, FIELDS)
    try:
        take_names(config, options.hosts or (), options.techniques or ())
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    run_and_tell(options, portability, config)
