"""A part of a store, as a store."""

from pathlib import Path

from fusion_jax.checkpoints import object_names as names
from fusion_jax.collaboration.store import Store, Versioned


class PrefixedStore:
    """Objects of another store whose names begin with a prefix."""

    def __init__(self, store: Store, prefix: str):
        """Takes the other store, and what ends in '/'."""
        self._store = store
        self._prefix = prefix

    @property
    def url(self) -> str:
        """The place itself: `open_store` of it is the same part."""
        return f"{self._store.url.rstrip('/')}/{self._prefix.rstrip('/')}"

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        return self._store.read(self._below(name))

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        return self._store.size(self._below(name))

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        found = self._store.list(self._prefix + names.check_prefix(prefix))
        return [name.removeprefix(self._prefix) for name in found]

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """See `Store.put_if_absent`."""
        return self._store.put_if_absent(self._below(name), data)

    def upload(self, file: Path, name: str) -> None:
        """See `Store.upload`."""
        self._store.upload(file, self._below(name))

    def download(self, name: str, file: Path) -> None:
        """See `Store.download`."""
        self._store.download(self._below(name), file)

    def read_versioned(self, name: str) -> Versioned | None:
        """See `Store.read_versioned`."""
        return self._store.read_versioned(self._below(name))

    def compare_and_set(self, name: str, data: bytes, version: str | None) -> bool:
        """See `Store.compare_and_set`."""
        return self._store.compare_and_set(self._below(name), data, version)

    def _below(self, name: str) -> str:
        # Checked before it is joined: '' and '/a' would pass behind the prefix.
        return self._prefix + names.check(name)
