"""What the commands that run a system share: options, the config of them, the run."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from fusion_jax.cli.printing import run_text, tell
from fusion_jax.config import Config

COMMON_FIELDS = ("encoder", "seed", "shots", "max_length", "dtype")


def names(text: str) -> tuple[str, ...]:
    """'A+B' -> ('A', 'B')."""
    return tuple(part for part in text.split("+") if part)


def add_run_arguments(
    parser: argparse.ArgumentParser, system: str, data: str, *, encoder: bool = True
) -> None:
    """The options of every run: data or a config, the work folder, fields.

    Args:
      parser: of the command.
      system: its name.
      data: what --data is for it.
      encoder: whether it has one encoder.
    """
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR", help=data)
    source.add_argument(
        "--config",
        metavar="FILE[:OPTIONS]",
        help="a config file instead, with options behind a colon",
    )
    parser.add_argument(
        "--workdir",
        default=f"runs/{system}",
        help=f"where everything is left, runs/{system} without it; a "
        "run that is there is continued",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a run of another config"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change any field of the config; may be repeated",
    )
    if encoder:
        parser.add_argument(
            "--encoder", help="model directory, package:NAME/DIR or hub id"
        )
    parser.add_argument(
        "--seed",
        type=int,
        help="of the head, the rows' order, the draw of the shots; 0 without it",
    )
    parser.add_argument("--shots", type=int, help="training rows in all")
    parser.add_argument("--max-length", type=int, help="tokens of an input")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the computation"
    )


def make_config(
    options: argparse.Namespace,
    on_data: Callable[[str], Config],
    fields: Mapping[str, str],
) -> Config:
    """The config of --data or --config, with what other options and --set change.

    Args:
      options: of a parser with `add_run_arguments`.
      on_data: the config for a folder.
      fields: option -> field of the config; an option not given changes nothing.
    """
    from fusion_jax.cli.configure import read_config, set_fields

    config = read_config(options.config) if options.config else on_data(options.data)
    changes = {**{name: name for name in COMMON_FIELDS}, **fields}
    for option, field in changes.items():
        value: Any = getattr(options, option, None)
        if value is not None:
            *parents, last = field.split(".")
            place: Any = config
            for parent in parents:
                place = place[parent]
            place[last] = value
    set_fields(config, options.set)
    return config


def run_and_tell(
    options: argparse.Namespace,
    system: Any,
    config: Config,
    table: Callable[[Any], str] | None = None,
) -> None:
    """Runs a system on this machine and prints what came out.

    Args:
      options: of a parser with `add_run_arguments`.
      system: the module of `fusion_jax.systems`.
      config: of `make_config`.
      table: as in `printing.run_text`.
    """
    from fusion_jax import runtime

    runtime.initialize()
    result = system.run(config, options.workdir, overwrite=options.overwrite)
    tell(options, result.results, run_text(result, table))
