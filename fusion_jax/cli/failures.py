"""Expected failures end with their message alone; a traceback is for a bug."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from fusion_jax.atomic import WriteFailed

EXPECTED = (ValueError, OSError, FloatingPointError)
"""What the library raises for input that does not fit; each message says what to do."""

FAILED, WRONG_USAGE = 1, 2
"""Exit codes beside 0."""


class WrongUsage(ValueError):
    """What was typed cannot be understood: an option, a field, a config's name."""


def warning_teller() -> Callable[..., None]:
    """For `warnings.showwarning`: one line without the place in our code, each once.

    A task that is read for each of several seeds is warned of only the first time.
    """
    told = set()

    def tell(message, category, filename, lineno, file=None, line=None) -> None:
        del category, filename, lineno, line
        if str(message) not in told:
            told.add(str(message))
            print(f"warning: {message}", file=file or sys.stderr)

    return tell


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Prints an expected error in one paragraph and exits with 1, or 2 if mistyped.

    FUSION_JAX_TRACEBACK=1 shows the traceback as well.
    """
    try:
        yield
    except BrokenPipeError as error:
        # The reader of a pipe, `head` say, has seen enough: no more output, not even
        # what Python would flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from error
    except EXPECTED as error:
        if os.environ.get("FUSION_JAX_TRACEBACK"):
            raise
        # The number in front of an OSError's own words tells a reader nothing.
        ours = isinstance(error, WriteFailed)
        print(f"error: {error.strerror if ours else error}", file=sys.stderr)
        code = WRONG_USAGE if isinstance(error, WrongUsage) else FAILED
        raise SystemExit(code) from error
