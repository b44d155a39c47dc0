"""Files and directories that are there in full or not at all."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class WriteFailed(OSError):
    """A file could not be written; what stood there before is untouched."""


@contextlib.contextmanager
def directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary sibling that becomes `path` when the block ends well.

    An exception, a kill or a full disk leaves `path` as it was: readers never see a
    directory that is half there. An existing `path` is replaced by two renames; a
    kill in the instant between them leaves the former one beside it, as
    '.NAME.*.old'.

    Raises:
      WriteFailed: names the path when the disk is full or the folder not writable.
    """
    target = Path(path)
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(
            tempfile.mkdtemp(
                prefix=f".{target.name}.", suffix=".partial", dir=target.parent
            )
        )
        staging.chmod(0o755)
    try:
        with explained(target):
            yield staging
            for file in staging.rglob("*"):
                if file.is_file():
                    _sync(file)
            if target.exists():
                old = staging.with_suffix(".old")
                os.replace(target, old)
                try:
                    os.replace(staging, target)
                except BaseException:
                    os.replace(old, target)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextlib.contextmanager
def file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary sibling file that becomes `path` when the block ends well.

    Raises:
      WriteFailed: names the path when the disk is full or the folder not writable.
    """
    target = Path(path)
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".partial", dir=target.parent
        )
        os.close(handle)
        staging = Path(name)
        try:
            yield staging
            _sync(staging)
            staging.chmod(0o644)
            os.replace(staging, target)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file by a temporary sibling, fsync and rename."""
    with file(path) as staging:
        staging.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`write_bytes` of JSON with two blanks of indent; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Appends UTF-8 text to a file, which a full disk leaves as it was."""
    target = Path(path)
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: closing the file must not write once more what did not fit.
        with target.open("ab", buffering=0) as handle:
            before = handle.seek(0, os.SEEK_END)
            try:
                data = memoryview(text.encode())
                while data:
                    data = data[handle.write(data) :]
            except BaseException:
                handle.truncate(before)
                raise


@contextlib.contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turns the operating system's word into one that names the file and the way."""
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        # EFBIG: the limit of one file (ulimit, a file system's own) is reached.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise WriteFailed(
                error.errno,
                f"the disk is full while writing {target}; nothing was left behind: "
                "free some space or choose another folder, then run again",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise WriteFailed(
                error.errno,
                f"no permission to write {target}; choose another folder",
            ) from error
        raise


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
