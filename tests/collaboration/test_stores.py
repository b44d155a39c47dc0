"""What every store promises: one suite for all kinds."""

import threading
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusion_jax.collaboration.local_store import LocalStore
from fusion_jax.collaboration.store import Conflict, ObjectMissing, StoreError
from fusion_jax.collaboration.stores import prefixed

RACERS = 50
BAD_NAMES = ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.hidden", ".a/b"]
BAD_NAMES += [
    "a b",
    "a\n",
    "ä",
    "a\\b",
    "a\0",
    "a:b",
    "a?b",
    "x" * 256,
    "x/" * 400 + "x",
]


def at_once(count, action):
    """Results of `action(i)` in as many threads, which begin together."""
    barrier = threading.Barrier(count)

    def wait_and_act(number):
        barrier.wait()
        return action(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(wait_and_act, range(count)))


def test_an_object_is_there_whole_once_it_was_put_and_stays(store, opened):
    other = opened()
    for number, data in enumerate((b"", b"{}", bytes(range(256)) * 300)):
        name = f"a/{number}.json"
        assert store.put_if_absent(name, data)
        for each in (store, other):
            assert not each.put_if_absent(name, data)
            assert not each.put_if_absent(name, b"second")
            assert each.read(name) == data
            assert each.size(name) == len(data)
            assert each.read_versioned(name).data == data
            assert each.list("")[number:] == [name]


def test_what_is_not_there_is_told_by_store_and_name(store, tmp_path):
    store.put_if_absent("a/b", b"")
    for name in ("c", "a", "a/b/c", "a/bb"):
        assert store.size(name) is None
        assert store.read_versioned(name) is None
        with pytest.raises(ObjectMissing, match=f"{store.url}.*'{name}'"):
            store.read(name)
        with pytest.raises(ObjectMissing, match=f"{store.url}.*'{name}'"):
            store.download(name, tmp_path / "to" / "file")
    assert not list(tmp_path.glob("to/*"))


def test_a_store_that_nobody_wrote_to_is_empty(store):
    assert store.list("") == []
    assert store.list("bases/") == []
    assert store.size("a") is None
    with pytest.raises(ObjectMissing):
        store.read("a")


def test_of_racing_writers_one_wins_and_the_others_see_its_bytes(opened):
    stores = [opened() for _ in range(2)]
    said = [f"{number} {uuid.uuid4()}".encode() * 200 for number in range(RACERS)]

    def race(number):
        mine = stores[number % len(stores)]
        won = mine.put_if_absent("bases/000001.json", said[number])
        return won, mine.read("bases/000001.json")

    results = at_once(RACERS, race)
    (winner,) = [number for number, (won, _) in enumerate(results) if won]
    assert {seen for _, seen in results} == {said[winner]}
    assert stores[0].list("") == ["bases/000001.json"]


def test_of_writers_with_the_same_to_say_one_is_told_it_was_first(store):
    results = at_once(RACERS, lambda _: store.put_if_absent("a", b"the same"))
    assert sum(results) == 1


def test_racing_uploads_of_one_content_are_all_content(store, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(1000) * 300)
    at_once(8, lambda _: store.upload(file, "a"))
    assert store.read("a") == file.read_bytes()


def test_compare_and_set_keeps_to_the_version(store):
    assert not store.compare_and_set("latest.json", b"1", "no such version")
    assert store.read_versioned("latest.json") is None
    assert store.compare_and_set("latest.json", b"1", None)
    assert not store.compare_and_set("latest.json", b"2", None)
    first = store.read_versioned("latest.json")
    assert store.compare_and_set("latest.json", b"22", first.version)
    assert not store.compare_and_set("latest.json", b"3", first.version)
    second = store.read_versioned("latest.json")
    assert second.data == b"22" and second.version != first.version
    assert store.size("latest.json") == 2
    assert store.list("") == ["latest.json"]


def test_counting_by_compare_and_set_loses_nothing(opened):
    threads, times = 5, 4
    stores = [opened() for _ in range(2)]
    stores[0].compare_and_set("count", b"0", None)

    def count(number):
        mine = stores[number % len(stores)]
        for _ in range(times):
            while True:
                held = mine.read_versioned("count")
                more = str(int(held.data) + 1).encode()
                if mine.compare_and_set("count", more, held.version):
                    break

    at_once(threads, count)
    assert stores[0].read("count") == str(threads * times).encode()


def test_names_are_listed_by_prefix_and_in_order(store, opened):
    named = ["a-b", "a.b", "a/b", "a/b.c", "a/c/d", "a=b", "aa/b", "B/a", "_/a", "9"]
    other = opened()
    for name in named:
        assert store.put_if_absent(name, b"")
        assert name in other.list("")
    for prefix in ("", "a", "a/", "a/b", "a/c/", "B/", "b", "aa/", "a/b.c"):
        wanted = sorted(name for name in named if name.startswith(prefix))
        assert store.list(prefix) == wanted


def test_a_large_object_comes_back_as_it_was(store, tmp_path):
    file, back = tmp_path / "file", tmp_path / "deep" / "back"
    file.write_bytes(bytes(range(251)) * 80_000)
    tracemalloc.start()
    try:
        store.upload(file, "a/b.safetensors")
        store.download("a/b.safetensors", back)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert back.read_bytes() == file.read_bytes()
    assert [each.name for each in back.parent.iterdir()] == ["back"]
    assert store.size("a/b.safetensors") == file.stat().st_size
    if isinstance(store, LocalStore):
        assert peak < 10 * 2**20, "a directory's objects pass in pieces of 4 MiB"


def test_an_upload_leaves_alone_what_is_there(store, tmp_path):
    file = tmp_path / "file"
    store.put_if_absent("a", b"first")
    file.write_bytes(b"other")
    store.upload(file, "a")
    assert store.read("a") == b"first"
    file.write_bytes(b"longer")
    with pytest.raises(Conflict, match=f"{store.url}.*'a'.* 5 bytes.* 6"):
        store.upload(file, "a")
    assert store.read("a") == b"first"


def test_an_upload_of_no_file_names_the_file(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent") as raised:
        store.upload(tmp_path / "absent", "a")
    assert not isinstance(raised.value, StoreError)
    assert store.list("") == []


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_by_all_methods(name, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    local = LocalStore(tmp_path / "store")
    for store in (local, prefixed(local, "fork")):
        for call in (
            lambda store: store.read(name),
            lambda store: store.size(name),
            lambda store: store.put_if_absent(name, b""),
            lambda store: store.upload(file, name),
            lambda store: store.download(name, tmp_path / "to"),
            lambda store: store.read_versioned(name),
            lambda store: store.compare_and_set(name, b"", None),
            lambda store: store.compare_and_set(name, b"", "1"),
        ):
            with pytest.raises(ValueError, match="cannot be the name of an object"):
                call(store)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_every_kind_of_store_refuses_bad_names_and_prefixes(store, tmp_path):
    for name in ("../a", "/a", ".a", "", "a b"):
        with pytest.raises(ValueError, match="cannot be the name"):
            store.read(name)
        with pytest.raises(ValueError, match="cannot be the name"):
            store.put_if_absent(name, b"")
    for prefix in ("..", "../", "/", "a//", ".a", "a b"):
        with pytest.raises(ValueError, match="no name of an object begins"):
            store.list(prefix)


def test_a_part_of_a_store_is_a_store(store, tmp_path):
    fork = prefixed(store, "forks/one/")
    assert fork.put_if_absent("bases/000000.json", b"fork")
    assert not fork.put_if_absent("bases/000000.json", b"again")
    assert store.put_if_absent("forks/one2", b"not below")
    assert store.list("") == ["forks/one/bases/000000.json", "forks/one2"]
    assert fork.list("") == fork.list("bas") == ["bases/000000.json"]
    assert fork.read("bases/000000.json") == b"fork"
    assert fork.size("bases/000000.json") == 4 and fork.size("one2") is None
    fork.download("bases/000000.json", tmp_path / "file")
    fork.upload(tmp_path / "file", "model/a")
    assert store.read("forks/one/model/a") == b"fork"
    assert fork.compare_and_set("latest.json", b"1", None)
    held = fork.read_versioned("latest.json")
    assert store.compare_and_set("forks/one/latest.json", b"22", held.version)
    assert not fork.compare_and_set("latest.json", b"3", held.version)
    assert prefixed(store, "") is store
