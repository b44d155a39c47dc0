"""From an address to a store."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fusion_jax.checkpoints import object_names as names
from fusion_jax.collaboration.local_store import LocalStore
from fusion_jax.collaboration.memory_store import memory_store
from fusion_jax.collaboration.object_store import Backend, Fault, ObjectStore
from fusion_jax.collaboration.prefixed_store import PrefixedStore
from fusion_jax.collaboration.store import Store, StoreError


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store at an address; nothing is read or written yet.

    Args:
      url: a path, or file://, memory://, s3:// or gs://.

    Raises:
      ValueError: the address is none.
      StoreError: the library that the scheme needs is not installed.
    """
    text = os.fspath(url)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is None:
        if not text:
            raise ValueError("the address of a store is empty; give a path or a url")
        return LocalStore(text)
    opener = OPENERS.get(scheme[1].lower())
    if opener is None:
        raise ValueError(
            f"{text}: no store is known for {scheme[0]}; give a path or one of "
            + ", ".join(f"{known}://" for known in OPENERS)
        )
    return opener(text)


def prefixed(store: Store, prefix: str) -> Store:
    """The part of a store whose names begin with `prefix` and a slash.

    It is the same as the store opened at that place: locks and conditions hold between
    the two.

    Raises:
      ValueError: no name can begin so.
    """
    prefix = prefix.rstrip("/")
    return PrefixedStore(store, f"{names.check(prefix)}/") if prefix else store


def _file(url: str) -> Store:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ValueError(f"{url}: write file:///absolute/path, or the path alone")
    return LocalStore(Path(unquote(parts.path)))


def _memory(url: str) -> Store:
    name, prefix = _split(url)
    return prefixed(memory_store(name), prefix)


def _s3(url: str) -> Store:
    name, prefix = _split(url)
    with _installed(url, "s3"):
        from fusion_jax.collaboration.s3_backend import S3Backend
    return _bucket(f"s3://{name}", prefix, lambda: S3Backend(name))


def _gs(url: str) -> Store:
    name, prefix = _split(url)
    with _installed(url, "gcs"):
        from fusion_jax.collaboration.gcs_backend import GCSBackend
    return _bucket(f"gs://{name}", prefix, lambda: GCSBackend(name))


def _bucket(url: str, prefix: str, connect: Callable[[], Backend]) -> Store:
    url = f"{url}/{prefix}".rstrip("/")
    try:
        backend = connect()
    except Fault as error:
        raise StoreError(f"{url}: {error}") from error
    return ObjectStore(url, backend, f"{prefix}/" if prefix else "")


def _split(url: str) -> tuple[str, str]:
    """The name behind the scheme, and the prefix behind that."""
    name, _, prefix = url.partition("://")[2].partition("/")
    prefix = prefix.rstrip("/")
    if not names.is_name(name) or (prefix and not names.is_name(prefix)):
        raise ValueError(
            f"{url}: write {url.partition('://')[0]}://name or .../name/prefix, of "
            "letters, digits and . _ = -"
        )
    return name, prefix


@contextlib.contextmanager
def _installed(url: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{url}: this kind of store needs the module '{error.name}', which is not "
            f"installed: pip install 'fusion_jax[{extra}]'"
        ) from error


# Scheme -> what opens it.
OPENERS: dict[str, Callable[[str], Store]] = {
    "file": _file,
    "memory": _memory,
    "s3": _s3,
    "gs": _gs,
}
