"""A store in a bucket: conditional writes, whatever may happen to their replies."""

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from fusion_jax import atomic
from fusion_jax.checkpoints import object_names as names
from fusion_jax.collaboration.store import (
    Conflict,
    ObjectMissing,
    StoreError,
    Versioned,
)

T = TypeVar("T")

# Seconds between tries; each is stretched at random, so that losers of a race part.
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


class Refused(Exception):
    """A conditional write met another version, and it met it at its first sending."""


class Again(Exception):
    """A request failed in a way that another try may mend.

    Attributes:
      unclear: a write may have taken place all the same.
    """

    def __init__(self, reason: str, unclear: bool):
        """Takes what was said, and whether a write may have been done."""
        super().__init__(reason)
        self.unclear = unclear


class Fault(Exception):
    """A request cannot succeed; the text holds reason and remedy."""


class Backend(Protocol):
    """What a service has to do; its methods raise Again and Fault, writes Refused."""

    def get(self, key: str) -> Versioned | None:
        """A small object with its version; None where there is none."""
        ...

    def keys(self, prefix: str, limit: int | None = None) -> Iterable[tuple[str, int]]:
        """Keys that begin with `prefix` and their sizes, in order, the first `limit`.

        It sees every object whose write has returned.
        """
        ...

    def put(self, key: str, data: bytes, version: str | None) -> str:
        """Writes if the version is still this (None = absent); returns the new one.

        It sends one request, once: a repetition would be refused by its own success.
        """
        ...

    def upload(self, file: Path, key: str) -> None:
        """Writes a large file, in bounded memory."""
        ...

    def download(self, key: str, file: Path) -> None:
        """Fetches a large object, in bounded memory."""
        ...


class ObjectStore:
    """Objects are keys of a bucket below a prefix.

    Small objects are written by the service's own conditional writes. A request whose
    reply never came is repeated with the same condition; where that is refused the
    object is read back, and identical bytes are our own success. `compare_and_set`
    raises where it finds neither what was there nor what was written: then our write
    may have come in between. Large objects are written without a condition: they are
    named by their content, so that two writers write the same. The first conditional
    write of each kind is repeated once, to see it refused: a service that ignores
    conditions would let one writer replace another's object.
    """

    def __init__(self, url: str, backend: Backend, prefix: str):
        """Takes a bucket, and '' or what all keys begin with, ending in '/'."""
        self._url = url
        self._backend = backend
        self._prefix = prefix
        self._proven: set[str] = set()

    @property
    def url(self) -> str:
        """s3://bucket/prefix or gs://bucket/prefix."""
        return self._url

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        found = self.read_versioned(name)
        if found is None:
            raise self._missing(name)
        return found.data

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        key = self._key(name)
        return self._trying("look up", name, lambda: self._size(key))

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        start = self._prefix + names.check_prefix(prefix)
        found = self._trying(
            "list", f"{prefix}*", lambda: list(self._backend.keys(start))
        )
        below = (key.removeprefix(self._prefix) for key, _ in found)
        return sorted(name for name in below if names.is_name(name))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """See `Store.put_if_absent`."""
        return self._put(name, data, None, immutable=True)

    def upload(self, file: Path, name: str) -> None:
        """See `Store.upload`."""
        key, file = self._key(name), Path(file)
        size = file.stat().st_size

        def create() -> None:
            # Asked at every try: the reply may have been lost of one that succeeded.
            if self._size(key) is None:
                self._backend.upload(file, key)

        self._trying("create", name, create)
        there = self.size(name)
        if there != size:
            raise Conflict(
                f"{self.url}: '{name}' is there with {there} bytes, {file} has {size}; "
                "an object is never replaced: name it by its content"
            )

    def download(self, name: str, file: Path) -> None:
        """See `Store.download`."""
        key = self._key(name)
        size = self.size(name)
        if size is None:
            raise self._missing(name)
        with atomic.file(file) as staging:
            self._trying("read", name, lambda: self._backend.download(key, staging))
            came = staging.stat().st_size
            if came != size:
                raise StoreError(
                    f"{self.url}: of '{name}' came {came} of {size} bytes; run again"
                )

    def read_versioned(self, name: str) -> Versioned | None:
        """See `Store.read_versioned`."""
        key = self._key(name)
        return self._trying("read", name, lambda: self._backend.get(key))

    def compare_and_set(self, name: str, data: bytes, version: str | None) -> bool:
        """See `Store.compare_and_set`."""
        return self._put(name, data, version, immutable=False)

    def _size(self, key: str) -> int | None:
        # By listing: a look at one object does not tell it from a missing bucket.
        return dict(self._backend.keys(key, limit=1)).get(key)

    def _put(
        self, name: str, data: bytes, version: str | None, immutable: bool
    ) -> bool:
        key = self._key(name)
        unclear = False

        def write() -> str | None:
            nonlocal unclear
            try:
                return self._backend.put(key, data, version)
            except Again as error:
                unclear |= error.unclear
                raise
            except Refused:
                return None

        written = self._trying("write", name, write)
        if written is not None:
            if written != version:
                self._prove(name, data, version)
            return True
        if not unclear:
            return False
        found = self.read_versioned(name)
        if found is not None and found.data == data:
            return True
        if immutable or (found.version if found else None) == version:
            return False
        raise StoreError(
            f"{self.url}: whether '{name}' was written cannot be told: a reply was "
            "lost, and somebody has written since; read it again and decide"
        )

    def _prove(self, name: str, data: bytes, version: str | None) -> None:
        """Repeats a write that was done: the condition no longer holds."""
        kind = "absent" if version is None else "unchanged"
        if kind in self._proven:
            return
        try:
            self._backend.put(self._key(name), data, version)
        except Refused:
            self._proven.add(kind)
        except Again:
            # No answer, so no proof either way: the next write asks again.
            return
        except Fault as error:
            raise self._failed("write", name, error) from error
        else:
            raise StoreError(
                f"{self.url}: the service ignores that '{name}' should have been "
                f"{kind}: of two writers both would win; use a newer version of it, or "
                "another store"
            )

    def _trying(self, doing: str, name: str, action: Callable[[], T]) -> T:
        for pause in (*PAUSES, None):
            try:
                return action()
            except Fault as error:
                raise self._failed(doing, name, error) from error
            except Again as error:
                if pause is None:
                    raise self._failed(
                        doing,
                        name,
                        f"{error}; see whether it can be reached, run again",
                    ) from error
                time.sleep(pause * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")

    def _failed(self, doing: str, name: str, error: object) -> StoreError:
        return StoreError(f"{self.url}: cannot {doing} '{name}': {error}")

    def _missing(self, name: str) -> ObjectMissing:
        return ObjectMissing(
            f"{self.url}: there is no '{name}'; look at what `list` finds, or whether "
            "this is the repository that was meant"
        )

    def _key(self, name: str) -> str:
        return self._prefix + names.check(name)
