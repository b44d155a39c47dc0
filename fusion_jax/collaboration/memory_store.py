"""A store in the memory of this process: for tests and for trying things out."""

import itertools
import threading
from pathlib import Path

from fusion_jax import atomic
from fusion_jax.checkpoints import object_names as names
from fusion_jax.collaboration.store import Conflict, ObjectMissing, Versioned


class MemoryStore:
    """Objects are entries of a dict; threads may share it, processes cannot.

    A version is a count of writes.
    """

    def __init__(self, name: str):
        """Takes what stands after memory:// in its url."""
        self._name = name
        self._objects: dict[str, Versioned] = {}
        self._versions = itertools.count(1)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """memory://name."""
        return f"memory://{self._name}"

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        found = self.read_versioned(name)
        if found is None:
            raise ObjectMissing(
                f"{self.url}: there is no '{name}'; a store in memory holds what this "
                "process has written"
            )
        return found.data

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        found = self.read_versioned(name)
        return None if found is None else len(found.data)

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        names.check_prefix(prefix)
        with self._lock:
            return sorted(name for name in self._objects if name.startswith(prefix))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """See `Store.put_if_absent`."""
        return self.compare_and_set(name, data, None)

    def upload(self, file: Path, name: str) -> None:
        """See `Store.upload`; the whole file stays in memory here."""
        data = Path(file).read_bytes()
        if self.put_if_absent(name, data):
            return
        there = self.size(name)
        if there != len(data):
            raise Conflict(
                f"{self.url}: '{name}' is there with {there} bytes, {file} has "
                f"{len(data)}; an object is never replaced: name it by its content"
            )

    def download(self, name: str, file: Path) -> None:
        """See `Store.download`."""
        atomic.write_bytes(file, self.read(name))

    def read_versioned(self, name: str) -> Versioned | None:
        """See `Store.read_versioned`."""
        with self._lock:
            return self._objects.get(names.check(name))

    def compare_and_set(self, name: str, data: bytes, version: str | None) -> bool:
        """See `Store.compare_and_set`."""
        names.check(name)
        with self._lock:
            held = self._objects.get(name)
            if (held.version if held else None) != version:
                return False
            self._objects[name] = Versioned(bytes(data), str(next(self._versions)))
            return True


_OPEN: dict[str, MemoryStore] = {}
_OPENING = threading.Lock()


def memory_store(name: str) -> MemoryStore:
    """The one store of that name in this process."""
    with _OPENING:
        return _OPEN.setdefault(name, MemoryStore(name))
