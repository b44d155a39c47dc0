"""Google Cloud Storage, through gcsfs and the JSON interface below it.

Not tested against the service itself: the tests reach none. Reading, listing and large
objects were tried on an emulator that knows no conditions; the conditional writes, on
which all depends, were not. `FUSION_JAX_TEST_STORE=gs://bucket/prefix` makes
tests/collaboration/test_stores.py run there: do so before you rely on it. Credentials
come from where gcsfs looks: `gcloud auth application-default login`,
GOOGLE_APPLICATION_CREDENTIALS, the account of a machine.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import gcsfs  # pyright: ignore[reportMissingImports]
from fsspec.asyn import sync
from gcsfs.retry import HttpError, is_retriable  # pyright: ignore[reportMissingImports]

from fusion_jax.collaboration.object_store import Again, Fault, Refused
from fusion_jax.collaboration.store import Versioned

# A multiple of 256 KiB, as uploads in pieces must have.
PIECE = 8 * 2**20


class GCSBackend:
    """One bucket. A version is a generation: writes cannot be tied to an ETag here."""

    def __init__(self, bucket: str):
        """Takes the bucket's name; credentials are looked for now."""
        self._bucket = bucket
        with _told():
            self._files = gcsfs.GCSFileSystem(
                skip_instance_cache=True, use_listings_cache=False
            )

    def get(self, key: str) -> Versioned | None:
        """See `Backend.get`."""
        path = "b/{}/o/{}"
        try:
            found = self._call("GET", path, key, fields="generation", json_out=True)
        except FileNotFoundError:
            return None
        version = found["generation"]
        try:
            _, data = self._call("GET", path, key, alt="media", generation=version)
        except FileNotFoundError:
            raise Again("it was replaced while it was read", unclear=False) from None
        return Versioned(data, version)

    def keys(self, prefix: str, limit: int | None = None) -> Iterator[tuple[str, int]]:
        """See `Backend.keys`."""
        options: dict[str, Any] = {"maxResults": limit} if limit else {}
        while True:
            try:
                found = self._call(
                    "GET", "b/{}/o", prefix=prefix, json_out=True, **options
                )
            except FileNotFoundError:
                raise self._no_bucket() from None
            for each in found.get("items", ()):
                yield each["name"], int(each["size"])
            if limit or not found.get("nextPageToken"):
                return
            options["pageToken"] = found["nextPageToken"]

    def put(self, key: str, data: bytes, version: str | None) -> str:
        """See `Backend.put`."""
        # Around gcsfs's decorator, which would repeat the request.
        send_once = gcsfs.GCSFileSystem._request.__wrapped__
        try:
            with _told():
                reply: Any = sync(
                    self._files.loop,
                    send_once,
                    self._files,
                    "POST",
                    self._files.base.replace("/storage/", "/upload/storage/")
                    + "b/{}/o",
                    self._bucket,
                    uploadType="media",
                    name=key,
                    # Generation 0 is that of an object that is not there.
                    ifGenerationMatch=version or "0",
                    headers={"Content-Type": "application/octet-stream"},
                    data=data,
                )
        except FileNotFoundError:
            raise self._no_bucket() from None
        return json.loads(reply[-1])["generation"]

    def upload(self, file: Path, key: str) -> None:
        """See `Backend.upload`."""
        try:
            with _told():
                self._files.put_file(str(file), self._path(key), chunksize=PIECE)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def download(self, key: str, file: Path) -> None:
        """See `Backend.download`."""
        try:
            with _told():
                # One stream: in pieces at once it would hold them all.
                self._files.get_file(self._path(key), str(file), concurrency=1)
        except FileNotFoundError:
            raise Fault("it was removed while it was read; run again") from None

    def _path(self, key: str) -> str:
        return f"{self._bucket}/{key}"

    def _call(self, method: str, path: str, *keys: str, **options: Any) -> Any:
        with _told():
            return sync(
                self._files.loop,
                self._files._call,
                method,
                path,
                self._bucket,
                *keys,
                **options,
            )

    def _no_bucket(self) -> Fault:
        return Fault(
            f"there is no bucket '{self._bucket}'; create it, or correct the address"
        )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns what gcsfs raises into what `Backend` says."""
    try:
        yield
    except FileNotFoundError:
        raise
    except FileExistsError as error:
        raise Refused from error
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        # Its own error has a code; without the library the type says nothing of it.
        code = getattr(error, "code", None)
        if isinstance(error, HttpError) and str(code) == "412":
            raise Refused from error
        lost = isinstance(error, aiohttp.ClientError | TimeoutError | ConnectionError)
        if lost or is_retriable(error):
            raise Again(line, unclear=True) from error
        # Of the operating system's errors only those of the local disk have a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Fault(
            f"{line}; check the credentials, and what the bucket grants them"
        ) from error
