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
from fusion_jax.cli.failures import WRONG_USAGE, warning_teller


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
