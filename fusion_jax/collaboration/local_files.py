"""Hidden files of a directory store: what is being written, and its locks."""

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# What a killed writer left behind is swept by a later one.
DAY = 24 * 60 * 60
PARTIAL = ".partial"
LOCK = ".lock"


@contextlib.contextmanager
def partial(folder: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Yields a hidden file with what `write` wrote, on the disk; it goes at the end."""
    path = folder / f".{uuid.uuid4().hex}{PARTIAL}"
    # Not by `tempfile`, whose files nobody else may read, whatever the umask says.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            # The clock is the file system's own, which machines share.
            _sweep(folder, os.fstat(file.fileno()).st_mtime - DAY)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sweep(folder: Path, before: float) -> None:
    """Removes what killed writers left in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(PARTIAL):
                # Another writer sweeps the same, or it belongs to another user.
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, against threads and processes alike."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        # Closing alone leaves it held by a child that was forked meanwhile.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def sync(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no fsync of a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
