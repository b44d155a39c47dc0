"""Directories: processes, kills, and what a disk may do."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusion_jax.collaboration.local_store import LocalStore
from fusion_jax.collaboration.store import StoreError
from fusion_jax.collaboration.stores import open_store, prefixed

ROOT = Path(__file__).resolve().parents[2]


def forked(task, folder, count, seed=0):
    script = Path(__file__).with_name("forked.py")
    done = subprocess.run(
        [sys.executable, script, task, folder, str(count), str(seed)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system with the options that are asked for."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return folder

    if shutil.which("mount") is None:
        pytest.skip("no file system can be mounted here: there is no mount")
    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_of_racing_processes_one_wins_and_none_loses_a_count(tmp_path):
    forked("race", tmp_path, 8)
    lines = [file.read_text().split() for file in tmp_path.glob("result-*")]
    assert len(lines) == 8
    won, its_own, seen = zip(*lines, strict=True)
    assert sorted(won) == ["False"] * 7 + ["True"] and sorted(its_own) == sorted(won)
    store = LocalStore(tmp_path / "store")
    data = store.read("bases/000001.json")
    assert set(seen) == {hashlib.sha256(data).hexdigest()}
    assert store.read("count") == b"80"
    assert store.list("") == ["bases/000001.json", "count"]


@pytest.mark.parametrize(
    "kills, seed", [(20, 0), pytest.param(200, 1, marks=pytest.mark.slow)]
)
def test_a_killed_writer_leaves_whole_objects_or_none(tmp_path, kills, seed):
    forked("kill", tmp_path, kills, seed)
    store = LocalStore(tmp_path / "store")
    found = store.list("")
    assert len(found) > 2
    for name in found:
        data = store.read(name)
        if name == "set":
            assert hashlib.sha256(bytes.fromhex(data[64:].decode())).hexdigest() == (
                data[:64].decode()
            )
        else:
            assert hashlib.sha256(data).hexdigest() == name.split("/")[1]
    left = [file for file in (tmp_path / "store").rglob(".*.partial")]
    assert left, "no kill fell into the midst of a write: the test shows nothing"
    # No lock survives its holder.
    held = store.read_versioned("set")
    assert held is not None and store.compare_and_set("set", b"", held.version)
    assert LocalStore(store.url, hard_links=False).put_if_absent("large/a", b"")


def test_what_killed_writers_left_is_swept_after_a_day(tmp_path):
    store = LocalStore(tmp_path)
    store.put_if_absent("a/b", b"1")
    old, new = tmp_path / "a" / ".old.partial", tmp_path / "a" / ".new.partial"
    for file in (old, new):
        file.write_bytes(b"half")
    ago = time.time() - 25 * 60 * 60
    os.utime(old, (ago, ago))
    assert store.list("") == ["a/b"]
    store.put_if_absent("a/c", b"2")
    assert not old.exists() and new.exists()
    assert store.list("") == ["a/b", "a/c"]


def test_files_that_are_no_objects_are_not_listed(tmp_path):
    store = LocalStore(tmp_path)
    store.put_if_absent("a/b", b"1")
    for stray in (".git/config", "a/.c", "a/b c", "a/d~", ".lock"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"")
    assert store.list("") == ["a/b"]


def test_both_ways_of_creating_respect_each_other(tmp_path):
    linking, renaming = LocalStore(tmp_path), LocalStore(tmp_path, hard_links=False)
    assert linking.put_if_absent("a", b"1") and not renaming.put_if_absent("a", b"2")
    assert renaming.put_if_absent("b", b"1") and not linking.put_if_absent("b", b"2")
    assert linking.read("a") == linking.read("b") == b"1"


def test_a_part_and_the_same_place_opened_hold_one_lock(tmp_path):
    part = prefixed(LocalStore(tmp_path), "forks/one")
    assert part.url == str(tmp_path / "forks" / "one")
    part.compare_and_set("latest.json", b"1", None)
    held = part.read_versioned("latest.json")
    assert part.compare_and_set("latest.json", b"2", held.version)
    place = open_store(part.url)
    held = place.read_versioned("latest.json")
    assert place.compare_and_set("latest.json", b"3", held.version)
    locks = [file.relative_to(tmp_path) for file in tmp_path.rglob(".lock")]
    assert locks == [Path("forks/one/.lock")]


def test_objects_are_as_readable_as_the_umask_says(tmp_path):
    former = os.umask(0o027)
    try:
        store = LocalStore(tmp_path / "store")
        store.put_if_absent("a", b"")
        held = store.read_versioned("a")
        store.compare_and_set("a", b"1", held.version)
        assert (tmp_path / "store" / "a").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(former)


def calls(store, tmp_path):
    """Every method, on a store that holds 'a/b'."""
    file = tmp_path / "file"
    file.write_bytes(b"1")
    return {
        "read": lambda: store.read("a/b"),
        "size": lambda: store.size("a/b"),
        "list": lambda: store.list(""),
        "put_if_absent": lambda: store.put_if_absent("a/new", b""),
        "upload": lambda: store.upload(file, "a/new"),
        "download": lambda: store.download("a/b", tmp_path / "to"),
        "read_versioned": lambda: store.read_versioned("a/b"),
        "compare_and_set": lambda: store.compare_and_set("a/b", b"", "1"),
    }


def test_a_directory_that_vanished_is_told_and_not_made_anew(tmp_path):
    store = LocalStore(tmp_path / "store")
    store.put_if_absent("a/b", b"1")
    shutil.rmtree(tmp_path / "store")
    for call in calls(store, tmp_path).values():
        with pytest.raises(StoreError, match=f"{store.url}.* is gone; mount"):
            call()
    assert not (tmp_path / "store").exists()


def test_a_file_where_the_directory_should_be_is_told(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    store = LocalStore(tmp_path / "store")
    for call in calls(store, tmp_path).values():
        with pytest.raises(
            StoreError, match=f"{store.url}.* is a file, not a directory"
        ):
            call()
    inside = LocalStore(tmp_path / "store" / "inside")
    for call in calls(inside, tmp_path).values():
        with pytest.raises(StoreError, match=f"{inside.url}.*a file stands where"):
            call()


def test_an_object_cannot_lie_below_another(tmp_path):
    store = LocalStore(tmp_path)
    store.put_if_absent("a", b"")
    store.put_if_absent("b/c", b"")
    with pytest.raises(StoreError, match=r"'a/b'.*a file stands where a directory"):
        store.put_if_absent("a/b", b"")
    with pytest.raises(StoreError, match="'b' cannot be an object, for others lie"):
        store.put_if_absent("b", b"")
    with pytest.raises(StoreError, match="'b' cannot be an object, for others lie"):
        store.upload(tmp_path / "a", "b")
    assert store.list("") == ["a", "b/c"]


def test_a_store_that_may_only_be_read_is_read_and_refuses_writes(mounted, tmp_path):
    folder = mounted("size=1m")
    LocalStore(folder).put_if_absent("a/b", b"1")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    store = LocalStore(folder)
    methods = calls(store, tmp_path)
    assert methods["read"]() == b"1" and methods["list"]() == ["a/b"]
    methods["download"]()
    methods["compare_and_set"] = lambda: store.compare_and_set(
        "a/b", b"", store.read_versioned("a/b").version
    )
    for method in ("put_if_absent", "upload", "compare_and_set"):
        with pytest.raises(StoreError, match=f"{store.url}.*'a/.*no permission"):
            methods[method]()


def test_a_full_disk_is_told_and_nothing_is_left(mounted, tmp_path):
    store = LocalStore(mounted("size=256k"))
    store.put_if_absent("a", b"1")
    large = tmp_path / "large"
    large.write_bytes(bytes(2**20))
    with pytest.raises(StoreError, match=f"{store.url}.*'b'.*the disk is full"):
        store.upload(large, "b")
    with pytest.raises(StoreError, match=r"'b'.*the disk is full"):
        store.put_if_absent("b", bytes(2**20))
    held = store.read_versioned("a")
    with pytest.raises(StoreError, match=r"'a'.*the disk is full"):
        store.compare_and_set("a", bytes(2**20), held.version)
    assert store.read("a") == b"1" and store.list("") == ["a"]
    assert {file.name for file in Path(store.url).iterdir()} == {"a", ".lock"}
