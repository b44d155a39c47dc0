"""Expected failures end with their message alone; a traceback is for a bug."""

import contextlib
import os
import sys
from collections.abc import Iterator

EXPECTED = (ValueError, OSError, FloatingPointError)
"""What the library raises for input that does not fit; each message says what to do."""

FAILED, WRONG_USAGE = 1, 2
"""Exit codes beside 0."""


class WrongUsage(ValueError):
    """What was typed cannot be understood: an option, a field, a config's name."""


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
        print(f"error: {error}", file=sys.stderr)
        code = WRONG_USAGE if isinstance(error, WrongUsage) else FAILED
        raise SystemExit(code) from error
