"""The operating system's word about a directory store, with what to do about it."""

import contextlib
import errno
from collections.abc import Iterator

from fusion_jax.collaboration.store import StoreError

REMEDIES = (
    (
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "the disk is full: free some space, then run again; nothing was left behind",
    ),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "no permission: ask its owner for the right, or choose another store",
    ),
    (
        (errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.EIO, errno.ENOTCONN),
        "the directory is gone or its disk fails: mount or restore it, then run again",
    ),
    (
        (errno.ENOTDIR, errno.EEXIST),
        "a file stands where a directory should be: remove it or choose another store",
    ),
    (
        (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS),
        "this file system knows neither hard links nor locks: choose another one",
    ),
)


@contextlib.contextmanager
def explained(url: str, doing: str, name: str) -> Iterator[None]:
    """Turns an OSError into a StoreError that names store, object and remedy."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        remedies = (remedy for codes, remedy in REMEDIES if error.errno in codes)
        raise StoreError(
            f"{url}: cannot {doing} '{name}': {error.strerror or error}; "
            + next(remedies, "see to it, then run again")
        ) from error
