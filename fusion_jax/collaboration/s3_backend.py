"""S3 and what speaks its protocol: botocore for small objects, s3fs for large ones.

Address and credentials come from where every client of S3 looks for them:
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, a role.
An upload that is killed leaves its parts in the bucket, unseen but paid for: give the
bucket a lifecycle rule that aborts incomplete multipart uploads.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import botocore.session
import s3fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NotConnected
from s3fs.core import S3_RETRYABLE_ERRORS

from fusion_jax.collaboration.object_store import Again, Fault, Refused
from fusion_jax.collaboration.store import Versioned

# This many pieces of this size pass at once; s3fs holds up to three times as much, for
# it lets go of a batch only when the next is there.
PIECES = 4
PIECE = 8 * 2**20
# S3 takes no more parts of one object.
MAX_PIECES = 10_000
# Objects in one reply to a listing: the most that S3 gives.
PAGE = 1000

_TRANSIENT = (
    *S3_RETRYABLE_ERRORS,
    HTTPClientError,
    NotConnected,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)
# The last of them: completing an upload was repeated, and had succeeded before.
_REPEAT = ("SlowDown", "RequestTimeout", "Throttling", "NoSuchUpload")


class S3Backend:
    """One bucket.

    A conditional write that is repeated unseen meets itself and is refused, so nothing
    below `ObjectStore` may repeat it. aiohttp, on which s3fs stands, sends a PUT again
    when a connection breaks, and cannot be told not to; botocore can.
    """

    def __init__(self, bucket: str):
        """Takes the bucket's name; nothing is connected yet."""
        self._bucket = bucket
        session = botocore.session.Session()
        session.register_component("data_loader", _models())
        with _told():
            self._client: Any = session.create_client(
                "s3",
                config=Config(
                    retries={"total_max_attempts": 1},
                    connect_timeout=10,
                    max_pool_connections=50,
                ),
            )
        # Not from the cache of instances: the environment may have changed since.
        self._files = s3fs.S3FileSystem(
            anon=False, skip_instance_cache=True, use_listings_cache=False
        )

    def get(self, key: str) -> Versioned | None:
        """See `Backend.get`."""
        try:
            with _told():
                reply = self._client.get_object(Bucket=self._bucket, Key=key)
                return Versioned(reply["Body"].read(), reply["ETag"])
        except _Missing:
            return None

    def keys(self, prefix: str, limit: int | None = None) -> Iterator[tuple[str, int]]:
        """See `Backend.keys`."""
        options = {"Bucket": self._bucket, "Prefix": prefix, "MaxKeys": limit or PAGE}
        while True:
            with _told():
                reply = self._client.list_objects_v2(**options)
            for found in reply.get("Contents", ()):
                yield found["Key"], found["Size"]
            if limit or not reply.get("IsTruncated"):
                return
            options["ContinuationToken"] = reply["NextContinuationToken"]

    def put(self, key: str, data: bytes, version: str | None) -> str:
        """See `Backend.put`."""
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            with _told():
                reply = self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=data, **condition
                )
        except _Missing:
            # If-Match of an object that is not there.
            raise Refused from None
        return reply["ETag"]

    def upload(self, file: Path, key: str) -> None:
        """See `Backend.upload`."""
        piece = max(PIECE, -(-file.stat().st_size // MAX_PIECES))
        with _told():
            self._files.put_file(
                str(file), self._path(key), chunksize=piece, max_concurrency=PIECES
            )

    def download(self, key: str, file: Path) -> None:
        """See `Backend.download`."""
        try:
            with _told():
                self._files.get_file(
                    self._path(key), str(file), chunksize=PIECE, max_concurrency=PIECES
                )
        except _Missing:
            raise Fault("it was removed while it was read; run again") from None

    def _path(self, key: str) -> str:
        return f"{self._bucket}/{key}"


@functools.cache
def _models() -> Any:
    """The description of S3, which takes long to read, for all clients of a process."""
    return botocore.session.Session().get_component("data_loader")


class _Missing(Exception):
    """There is no object of that key."""


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns what the libraries raise into what `Backend` says."""
    try:
        yield
    except Exception as error:
        # s3fs wraps the client's error into one of the operating system's kind.
        for each in (error, error.__cause__):
            if isinstance(each, ClientError):
                raise _meaning(each) from error
        if isinstance(error, _TRANSIENT):
            raise Again(_line(error), unclear=True) from error
        if isinstance(error, BotoCoreError):
            raise Fault(
                f"{_line(error)}; see to AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or "
                "AWS_PROFILE) and AWS_ENDPOINT_URL"
            ) from error
        raise


def _meaning(error: ClientError) -> Exception:
    """What the service's refusal of a request means."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = error.response.get("Error", {}).get("Code", "")
    line = _line(error)
    # Some services answer a condition that fails as they do on reads.
    if status in (304, 412):
        return Refused()
    if code in ("NoSuchKey", "404"):
        return _Missing()
    if code == "NoSuchBucket":
        return Fault(f"{line}; create the bucket, or correct the address")
    # A write of the same key is under way; this one did not take place.
    if status == 409:
        return Again(line, unclear=False)
    if code in _REPEAT or status == 429 or (status >= 500 and status != 501):
        return Again(line, unclear=True)
    if status in (401, 403):
        return Fault(f"{line}; check the credentials, and what the bucket grants them")
    return Fault(f"{line}; the service does not do what a store needs")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
