"""A store that counts: what goes over the wire, and how often it is asked."""

from pathlib import Path

from fusion_jax.collaboration.store import Store, Versioned


class CountingStore:
    """Another store, with the bytes and requests that passed.

    Attributes:
      down: bytes that were read.
      up: bytes that were written, of requests that created something.
      requests: calls.
    """

    def __init__(self, store: Store):
        """Begins at zero."""
        self._store = store
        self.down = self.up = self.requests = 0

    @property
    def url(self) -> str:
        """See `Store.url`."""
        return self._store.url

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        self.requests += 1
        data = self._store.read(name)
        self.down += len(data)
        return data

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        self.requests += 1
        return self._store.size(name)

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        self.requests += 1
        return self._store.list(prefix)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """See `Store.put_if_absent`."""
        self.requests += 1
        won = self._store.put_if_absent(name, data)
        self.up += len(data) if won else 0
        return won

    def upload(self, file: Path, name: str) -> None:
        """See `Store.upload`."""
        self.requests += 1
        there = self._store.size(name) is not None
        self._store.upload(file, name)
        self.up += 0 if there else file.stat().st_size

    def download(self, name: str, file: Path) -> None:
        """See `Store.download`."""
        self.requests += 1
        self._store.download(name, file)
        self.down += file.stat().st_size

    def read_versioned(self, name: str) -> Versioned | None:
        """See `Store.read_versioned`."""
        self.requests += 1
        found = self._store.read_versioned(name)
        self.down += 0 if found is None else len(found.data)
        return found

    def compare_and_set(self, name: str, data: bytes, version: str | None) -> bool:
        """See `Store.compare_and_set`."""
        self.requests += 1
        won = self._store.compare_and_set(name, data, version)
        self.up += len(data) if won else 0
        return won
