"""What the launch scripts share: how they start, and what a mistyped flag says."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from fusion_jax.cli.configure import unknown_field
from fusion_jax.cli.failures import WRONG_USAGE, explained, warning_teller
from fusion_jax.cli.printing import run_text


def launch_system(
    system: Any,
    workdir: str,
    *,
    seeds: bool = True,
    table: Callable[[Any], str] | None = None,
) -> None:
    """The whole of a launch script: --config, --workdir, --overwrite, run, print.

    Args:
      system: the module of `fusion_jax.systems`.
      workdir: where it leaves everything by default.
      seeds: whether its config has the field, for --seeds.
      table: as in `printing.run_text`.
    """
    from ml_collections import config_flags

    from fusion_jax import runtime

    given = config_flags.DEFINE_config_file(
        "config", None, "Config file.", lock_config=True
    )
    folder = flags.DEFINE_string("workdir", workdir, "Where everything is left.")
    overwrite = flags.DEFINE_bool(
        "overwrite", False, "Replace a run of another config."
    )
    given_seeds = None
    if seeds:
        given_seeds = flags.DEFINE_integer("seeds", None, "Short for --config.seeds.")

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"what is {argv[1]!r}? Options start with --")
        config = given.value
        with explained():
            if given_seeds is not None and given_seeds.value is not None:
                config.seeds = given_seeds.value
            runtime.initialize()
            result = system.run(config, folder.value, overwrite=overwrite.value)
        print(run_text(result, table))

    start(main)


def start(main: Callable[[list[str]], Any], *, config_required: bool = True) -> None:
    """Parses the flags, of which --config is mostly required, and runs `main`."""
    if config_required:
        flags.mark_flag_as_required("config")
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells of files at INFO
    logging.getLogger("fusion_jax").setLevel("INFO")
    warnings.showwarning = warning_teller()
    app.run(main, flags_parser=parse_flags)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """What is left of the arguments after the flags.

    A mistyped flag, option or field ends the process with one message and code 2; a
    bug in a config file keeps its traceback.
    """
    config = _config_file(arguments)
    if config and not Path(config).is_file():
        _wrong_usage(f"--config: there is no file {config}")
    try:
        return flags.FLAGS(list(arguments))
    except flags.Error as error:
        # A ValueError of the config file arrives with its traceback as text.
        causes = [e for e in _chain(error) if not isinstance(e, flags.Error)]
        inner = [e for e in causes if type(e) is ValueError]
        parsing = "Error whilst parsing config file" in str(error)
        _wrong_usage(str(inner[-1] if parsing and inner else error))
    except AttributeError as error:
        told = unknown_field(error, config)
        if told is None:
            raise
        _wrong_usage(told)


def _wrong_usage(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(WRONG_USAGE)


def _config_file(arguments: Sequence[str]) -> str:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return (value if equals else following).partition(":")[0]
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
