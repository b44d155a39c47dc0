"""The console command fusion-jax: one subcommand a file, each loaded when chosen."""

import argparse
import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from fusion_jax.cli.failures import explained, warning_teller
from fusion_jax.version import __version__

COMMANDS: dict[str, str] = {
    "merge": "merge checkpoint folders of any architecture and size",
    "dfwe": "interpolate experts of several source tasks for a target task",
    "cold-fusion": "evolve a shared base by contributors' fine-tunes, simulated",
    "dataless-fusion": "merge owners' models without their data, and test the result",
    "portability": "train modules on one model, port them to others, and test them",
    "task-selection": "rank source tasks by divergences, held against transfer",
    "select": "rank your own source tasks for a target, without training",
    "repository": "evolve one base model with a group, on plain storage",
    "finetune": "fine-tune an encoder on one task",
    "evaluate": "score any model directory on a task folder",
    "predict": "print what a model says of texts",
    "statistics": "sum up a model's layer inputs or Fisher on data, for a merge",
    "peft": "read, write, merge and port modules such as LoRA",
    "inspect": "compare models layer by layer before they are merged",
}
"""Name -> one line. The module `fusion_jax.cli.NAME` ('_' for '-') has
`add_arguments(parser)` and `run(options)`, and imports what is heavy inside `run`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
      argv: what follows the command's name; of this process if None.

    Returns:
      The exit code: 0 done, 1 failed, 2 wrong usage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser(arguments).parse_args(arguments)
        command = _module(options.command)
        with explained(), _output(options.quiet):
            command.run(options)
            sys.stdout.flush()  # a full disk or a closed pipe is told here, not later
    except SystemExit as end:
        # argparse leaves this way, after --help as after a mistake.
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 1
    return 0


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """All commands by name; only the chosen one with its options."""
    parser = argparse.ArgumentParser(
        prog="fusion-jax", description="Weight-space model fusion in JAX."
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, line in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            # --seed must never be taken for --seeds.
            allow_abbrev=False,
        )
        sub.add_argument("--json", action="store_true", help="print JSON for machines")
        sub.add_argument(
            "--quiet", action="store_true", help="print the result and nothing else"
        )
        if name == chosen:
            _module(name).add_arguments(sub)
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f"fusion_jax.cli.{name.replace('-', '_')}")


@contextlib.contextmanager
def _output(quiet: bool) -> Iterator[None]:
    """Log lines and warnings on stderr, one line each; nothing at all where quiet."""
    if quiet:
        # Progress bars too: they show themselves on a terminal only. What fails is
        # told outside of this block.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
        return
    logger = logging.getLogger("fusion_jax")
    handler = logging.StreamHandler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Libraries give the root a handler of their own, which would say all twice.
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warning_teller()
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


if __name__ == "__main__":
    sys.exit(main())
