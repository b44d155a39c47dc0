"""Buckets: replies that get lost, services that refuse, fail or know no conditions."""

import time
import tracemalloc

import pytest

from fusion_jax.collaboration import object_store
from fusion_jax.collaboration.store import StoreError
from fusion_jax.collaboration.stores import open_store
from tests.collaboration.s3_proxy import (
    BUSY,
    CONFLICT,
    CUT,
    DENIED,
    LOST,
    PASS,
    UNSENT,
)

pytest.importorskip("s3fs", reason="S3 cannot be tried: pip install '.[test]'")

from fusion_jax.collaboration import s3_backend


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same number of tries, with shorter pauses between them."""
    pauses = tuple(0.01 for _ in object_store.PAUSES)
    monkeypatch.setattr(object_store, "PAUSES", pauses)


@pytest.fixture
def direct(bucket):
    """The bucket without the proxy: asked for before it, connected before it."""
    store = open_store(f"s3://{bucket}/p")
    assert store.list("") == []
    return store


@pytest.fixture
def through(direct, proxy):
    """The bucket through the proxy, which has seen that conditions hold."""
    store = open_store(direct.url)
    assert store.put_if_absent("first", b"0")
    assert store.compare_and_set("first", b"1", store.read_versioned("first").version)
    return store


# That every request is seen shows that no library repeats one unseen.
@pytest.mark.parametrize("lost", [1, 4])
@pytest.mark.parametrize("fate", [LOST, UNSENT])
def test_a_write_whose_reply_was_lost_is_ones_own_success(
    direct, through, proxy, fate, lost
):
    proxy.decide("PUT", *[fate] * lost)
    assert through.put_if_absent("a", b"mine")
    assert proxy.seen == [fate] * lost + [PASS]
    assert direct.read("a") == b"mine"
    held = through.read_versioned("a")
    proxy.decide("PUT", *[fate] * lost)
    assert through.compare_and_set("a", b"mine too", held.version)
    assert proxy.seen == [fate] * lost + [PASS]
    assert direct.read("a") == b"mine too"


def test_a_lost_reply_does_not_make_another_ones_object_ones_own(
    direct, through, proxy
):
    direct.put_if_absent("a", b"theirs")
    held = direct.read_versioned("a")
    proxy.decide("PUT", LOST)
    assert not through.put_if_absent("a", b"mine")
    assert proxy.seen == [LOST, PASS]
    proxy.decide("PUT", UNSENT)
    assert through.compare_and_set("a", b"mine", held.version)
    assert direct.read("a") == b"mine"


def test_a_swap_that_may_have_been_swapped_again_is_not_decided(direct, through, proxy):
    direct.compare_and_set("a", b"1", None)
    held = through.read_versioned("a")

    def overwrite():
        now = direct.read_versioned("a")
        assert now.data == b"2"
        assert direct.compare_and_set("a", b"3", now.version)

    proxy.meanwhile = overwrite
    proxy.decide("PUT", LOST)
    with pytest.raises(
        StoreError, match=f"{direct.url}.*'a' was written cannot be told"
    ):
        through.compare_and_set("a", b"2", held.version)
    assert direct.read("a") == b"3"


@pytest.mark.parametrize("fate, tries", [(CONFLICT, 3), (BUSY, 6)])
def test_a_service_that_is_busy_is_asked_again(direct, through, proxy, fate, tries):
    proxy.decide("PUT", *[fate] * tries)
    assert through.put_if_absent("a", b"1")
    assert proxy.seen == [fate] * tries + [PASS]
    proxy.decide("GET", *[BUSY] * 4)
    assert through.read("a") == b"1"
    # A conflict is a clear reply: what is there then is another's.
    direct.put_if_absent("b", b"same")
    proxy.decide("PUT", CONFLICT)
    assert not through.put_if_absent("b", b"same")


def test_a_service_that_stays_busy_is_told(through, proxy):
    proxy.decide("PUT", *[BUSY] * 100)
    with pytest.raises(
        StoreError, match=f"{through.url}.*write 'a'.*SlowDown.*run again"
    ):
        through.put_if_absent("a", b"1")
    assert len(proxy.seen) == len(object_store.PAUSES) + 1


def test_304_is_a_refusal_too(direct, through, proxy):
    proxy.status_for[412] = 304
    direct.put_if_absent("a", b"theirs")
    assert not through.put_if_absent("a", b"mine")
    assert direct.read("a") == b"theirs"


@pytest.mark.parametrize("header", ["if-none-match", "if-match"])
def test_a_service_that_ignores_conditions_is_refused(direct, proxy, header):
    direct.put_if_absent("a", b"1")
    held = direct.read_versioned("a")
    proxy.without_header = header
    store = open_store(direct.url)
    with pytest.raises(
        StoreError, match=f"{store.url}.*ignores that.*should have been"
    ):
        if header == "if-match":
            store.compare_and_set("a", b"2", held.version)
        else:
            store.put_if_absent("b", b"2")


def test_conditions_are_proven_once_a_store(direct, through, proxy):
    proxy.decide("PUT")
    for number in range(3):
        assert through.put_if_absent(f"a{number}", b"")
    assert proxy.seen == [PASS] * 3


def test_a_download_that_breaks_off_is_whole_or_absent(
    direct, through, proxy, tmp_path, monkeypatch
):
    monkeypatch.setattr(through._backend._files, "retries", 1)
    direct.put_if_absent("a", bytes(range(256)) * 1000)
    proxy.decide("GET", PASS, CUT)
    through.download("a", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == direct.read("a")
    assert CUT in proxy.seen
    proxy.decide("GET", PASS, *[CUT] * 100)
    with pytest.raises(StoreError, match=f"{through.url}.*cannot read 'a'"):
        through.download("a", tmp_path / "other")
    proxy.decide("GET", CUT)
    assert through.read("a") == direct.read("a")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_upload_whose_reply_was_lost_is_there(
    direct, through, proxy, tmp_path, monkeypatch
):
    monkeypatch.setattr(s3_backend, "PIECE", 5 * 2**20)
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 41_000)
    # A part of it, and the reply to the call that puts the parts together.
    proxy.decide("PUT", PASS, LOST)
    through.upload(file, "parts")
    assert LOST in proxy.seen
    proxy.decide("POST", PASS, LOST)
    through.upload(file, "completed")
    assert LOST in proxy.seen
    assert direct.read("parts") == direct.read("completed") == file.read_bytes()


def test_a_listing_goes_through_all_pages(direct, monkeypatch):
    monkeypatch.setattr(s3_backend, "PAGE", 7)
    named = [f"verdicts/{number:02d}" for number in range(30)]
    for name in named:
        direct.put_if_absent(name, b"")
    assert direct.list("") == named and direct.list("verdicts/1") == named[10:20]


def test_keys_that_no_store_wrote_are_not_listed(direct, s3_client):
    bucket = direct.url.split("/")[2]
    direct.put_if_absent("a/b", b"")
    for key in ("p/", "p/a/", "p/.hidden", "p/a b", "p2", "q/a"):
        s3_client.put_object(Bucket=bucket, Key=key)
    assert direct.list("") == ["a/b"]


def calls(store, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"1")
    return [
        lambda: store.read("a"),
        lambda: store.size("a"),
        lambda: store.list(""),
        lambda: store.put_if_absent("a", b""),
        lambda: store.upload(file, "a"),
        lambda: store.download("a", tmp_path / "to"),
        lambda: store.read_versioned("a"),
        lambda: store.compare_and_set("a", b"", '"1"'),
    ]


def test_a_bucket_that_vanished_is_told_by_every_method(direct, s3_client, tmp_path):
    s3_client.delete_bucket(Bucket=direct.url.split("/")[2])
    for call in calls(direct, tmp_path):
        with pytest.raises(StoreError, match=f"{direct.url}.*create the bucket"):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_service_that_denies_is_told_by_every_method(through, proxy, tmp_path):
    proxy.decide("ANY", *[DENIED] * 20)
    for call in calls(through, tmp_path):
        with pytest.raises(StoreError, match=r"AccessDenied.*check the credentials"):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_no_credentials_are_told(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=f"s3://{bucket}.*AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{bucket}").list("")


def test_a_service_that_is_not_there_is_told_soon(proxy, s3_environment):
    proxy.server.server_close()
    store = open_store("s3://bucket")
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"s3://bucket: cannot list.*can be reached"):
        store.list("")
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_large_object_passes_in_bounded_memory(direct, tmp_path):
    file, back = tmp_path / "file", tmp_path / "back"
    with file.open("wb") as handle:
        for number in range(300):
            handle.write(bytes([number % 256]) * 2**20)
    tracemalloc.start()
    try:
        direct.upload(file, "a")
        up = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        direct.download("a", back)
        down = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert back.read_bytes() == file.read_bytes()
    bound = 3 * s3_backend.PIECES * s3_backend.PIECE
    assert up < bound and down < bound, (up, down)
