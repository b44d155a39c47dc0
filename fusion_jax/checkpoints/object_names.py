"""Names of objects: what every store takes, and what all refuse alike.

A name that one backend takes and another does not would make a repository that cannot
be moved, so the strictest of them (a directory) decides for all.
"""

import re

# A file's name has at most 255 bytes, an object's key at most 1024 with its prefix.
SEGMENT = 255
TOTAL = 700

_SEGMENT = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*")
_RULE = (
    "use segments of letters, digits and . _ = -, joined by '/', none of them empty or "
    f"with a dot first, at most {SEGMENT} characters each and {TOTAL} in all"
)


def is_name(name: str) -> bool:
    """Whether an object may have this name."""
    return len(name) <= TOTAL and all(
        len(segment) <= SEGMENT and _SEGMENT.fullmatch(segment)
        for segment in name.split("/")
    )


def check(name: str) -> str:
    """Returns the name of an object.

    Raises:
      ValueError: no store takes it.
    """
    if not is_name(name):
        raise ValueError(f"'{name}' cannot be the name of an object: {_RULE}")
    return name


def check_prefix(prefix: str) -> str:
    """Returns the beginning of a name: '', 'bases/', 'bases/0000'.

    Raises:
      ValueError: no name can begin so.
    """
    # What a name begins with is one itself, but for a slash at its end.
    if prefix and not is_name(prefix.removesuffix("/")):
        raise ValueError(f"no name of an object begins with '{prefix}': {_RULE}")
    return prefix
