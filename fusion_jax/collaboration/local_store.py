"""A store in a directory: of one machine, or of several that mount it."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from fusion_jax import atomic
from fusion_jax.checkpoints import object_names as names
from fusion_jax.collaboration import local_files
from fusion_jax.collaboration.local_faults import explained
from fusion_jax.collaboration.store import (
    Conflict,
    ObjectMissing,
    StoreError,
    Versioned,
)

CHUNK = 4 * 2**20

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_OBJECT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalStore:
    """Objects are files below a directory, which the first write creates.

    An object is written to a hidden file beside its name and then hard-linked to the
    name, which fails where the name is taken: a plain rename would replace what is
    there. Where the file system has no hard links the hidden file is renamed under a
    lock; all writers of one directory must then see it through such a file system.

    `compare_and_set` compares and renames under `flock` of a hidden file, which the
    kernel releases when a process ends, however it ends. So it holds between all
    processes of one machine, and between machines where the shared file system passes
    `flock` on (NFS from version 4, Lustre with `-o flock`); it does not where locks are
    kept on each machine alone. `put_if_absent` needs no lock. A version is the SHA-256
    of the content.

    """

    def __init__(self, path: str | os.PathLike[str], *, hard_links: bool = True):
        """Takes the directory; `hard_links=False` never tries them."""
        self._root = Path(os.path.abspath(path))
        self._hard_links = hard_links
        # A directory that was there and is gone must not be mistaken for an empty one.
        self._was_there = self._root.is_dir()

    @property
    def url(self) -> str:
        """The absolute path."""
        return str(self._root)

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        with self._open(name) as handle, explained(self.url, "read", name):
            return handle.read()

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        target = self._target(name)
        with explained(self.url, "look up", name):
            try:
                found = target.stat()
            except _NO_OBJECT:
                self._check_root()
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        start = self._root / names.check_prefix(prefix).rpartition("/")[0]
        found = []
        with explained(self.url, "list", f"{prefix}*"):
            self._check_root()
            # Without `onerror` a folder that may not be read would seem to be empty.
            for folder, folders, files in os.walk(start, onerror=_unless_missing):
                folders[:] = [each for each in folders if names.is_name(each)]
                below = Path(folder).relative_to(self._root).as_posix()
                head = "" if below == "." else f"{below}/"
                found += [head + file for file in files if names.is_name(file)]
        return sorted(name for name in found if name.startswith(prefix))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """See `Store.put_if_absent`."""
        return self._create(name, lambda handle: handle.write(data))

    def upload(self, file: Path, name: str) -> None:
        """See `Store.upload`."""
        with Path(file).open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            if self.size(name) is None and self._create(
                name, lambda handle: shutil.copyfileobj(source, handle, CHUNK)
            ):
                return
        there = self.size(name)
        if there != size:
            raise Conflict(
                f"{self.url}: '{name}' is there with {there} bytes, {file} has {size}; "
                "an object is never replaced: name it by its content"
            )

    def download(self, name: str, file: Path) -> None:
        """See `Store.download`."""
        with self._open(name) as source, atomic.file(file) as staging:
            with staging.open("wb") as handle:
                shutil.copyfileobj(source, handle, CHUNK)

    def read_versioned(self, name: str) -> Versioned | None:
        """See `Store.read_versioned`."""
        try:
            data = self.read(name)
        except ObjectMissing:
            return None
        return Versioned(data, hashlib.sha256(data).hexdigest())

    def compare_and_set(self, name: str, data: bytes, version: str | None) -> bool:
        """See `Store.compare_and_set`."""
        if version is None:
            return self.put_if_absent(name, data)
        target = self._target(name)
        if self.size(name) is None:
            return False
        with explained(self.url, "write", name), local_files.locked(target.parent):
            held = self.read_versioned(name)
            if held is None or held.version != version:
                return False
            with local_files.partial(
                target.parent, lambda handle: handle.write(data)
            ) as partial:
                os.replace(partial, target)
            local_files.sync(target.parent)
        return True

    def _create(self, name: str, write: Callable[[BinaryIO], object]) -> bool:
        """Creates an object from what `write` writes; False where the name is taken."""
        target = self._target(name)
        with explained(self.url, "create", name):
            self._make(target.parent)
            if not self._taken(target):
                with local_files.partial(target.parent, write) as partial:
                    created = self._name(partial, target)
                local_files.sync(target.parent)
                return created
        return False

    def _name(self, partial: Path, target: Path) -> bool:
        """Gives a finished file its name, unless that is taken."""
        if self._hard_links:
            try:
                os.link(partial, target)
                return True
            except FileExistsError:
                # NFS repeats a call whose reply was lost, and then meets its own link.
                return self._taken(target) and os.path.samefile(partial, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
        with local_files.locked(target.parent):
            if self._taken(target):
                return False
            os.rename(partial, target)
            return True

    def _taken(self, target: Path) -> bool:
        if target.is_dir():
            name = target.relative_to(self._root).as_posix()
            raise StoreError(
                f"{self.url}: '{name}' cannot be an object, for others lie below it; "
                "choose another name"
            )
        return os.path.lexists(target)

    def _target(self, name: str) -> Path:
        return self._root / names.check(name)

    def _open(self, name: str) -> BinaryIO:
        target = self._target(name)
        with explained(self.url, "read", name):
            try:
                return target.open("rb")
            except _NO_OBJECT:
                self._check_root()
                raise ObjectMissing(
                    f"{self.url}: there is no '{name}'; look at what `list` finds, or "
                    "whether this is the repository that was meant"
                ) from None

    def _check_root(self) -> None:
        """Raises where the directory is gone; one that never was is an empty store."""
        # Remembered before it is looked at: another thread may be creating it now.
        was_there = self._was_there
        try:
            mode = self._root.stat().st_mode
        except FileNotFoundError:
            if was_there:
                raise StoreError(
                    f"{self.url}: the directory is gone; mount or restore it, run again"
                ) from None
            return
        if not stat.S_ISDIR(mode):
            raise StoreError(
                f"{self.url}: is a file, not a directory; give the directory of a "
                "repository"
            )
        self._was_there = True

    def _make(self, folder: Path) -> None:
        """Makes a folder, its parents and their entries durable."""
        if folder == self._root:
            self._check_root()
            folder.mkdir(parents=True, exist_ok=True)
            self._was_there = True
        elif not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            local_files.sync(folder.parent)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, _NO_OBJECT):
        raise error
