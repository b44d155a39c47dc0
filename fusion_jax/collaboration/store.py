"""What a weight repository asks of the storage that it lies in.

A store holds whole objects under names 'a/b/c'. Two promises carry everything else: an
object appears in full or not at all, and of all that create one name exactly one wins.
"""

from pathlib import Path
from typing import NamedTuple, Protocol


class StoreError(OSError):
    """A store cannot be read or written; names the store, the object and the remedy."""


class ObjectMissing(StoreError):
    """There is no object of that name."""


class Conflict(StoreError):
    """An immutable object is there already, with other content."""


class Versioned(NamedTuple):
    """An object and what `compare_and_set` has to be told of it.

    Attributes:
      data: its bytes.
      version: of the backend: an ETag, a generation, a hash.
    """

    data: bytes
    version: str


class Store(Protocol):
    """One directory or bucket prefix.

    Names are relative, of segments [A-Za-z0-9._=-]+ joined by '/'; no segment is '.',
    '..' or starts with a dot. Every method raises StoreError where the store is gone or
    permission lacks.
    """

    @property
    def url(self) -> str:
        """Where it lies, as `open_store` takes it."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of an object.

        Raises:
          ObjectMissing: there is none.
        """
        ...

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Names of all objects that begin with `prefix`, sorted.

        An object whose creation has returned is listed.
        """
        ...

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Creates a small object.

        After a reply that leaves open whether the write took place, the object is read
        back: identical bytes are our own success. Callers put a nonce into `data`
        where two writers could have the same to say.

        Returns:
          Whether the object is there by this call; False: another was first, and
          stays.
        """
        ...

    def upload(self, file: Path, name: str) -> None:
        """Creates a large object from a file, in bounded memory.

        For objects that are named by their content: one that is there already with the
        same size is left alone.

        Raises:
          Conflict: it is there with another size.
        """
        ...

    def download(self, name: str, file: Path) -> None:
        """Writes an object to a file, in bounded memory; `file` is whole or absent.

        Raises:
          ObjectMissing: there is none.
        """
        ...

    def read_versioned(self, name: str) -> Versioned | None:
        """An object with its version; None where there is none."""
        ...

    def compare_and_set(self, name: str, data: bytes, version: str | None) -> bool:
        """Writes a small object if its version is still the one given.

        Args:
          name: of the object, which is one that may change.
          data: what it shall hold.
          version: of `read_versioned`; None = it must not be there.

        Returns:
          Whether it was written; False: somebody else was faster.
        """
        ...
