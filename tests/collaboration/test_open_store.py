"""Addresses of stores."""

import subprocess
import sys
from pathlib import Path

import pytest

from fusion_jax.checkpoints.object_names import (
    SEGMENT,
    TOTAL,
    check,
    check_prefix,
    is_name,
)
from fusion_jax.collaboration.store import StoreError
from fusion_jax.collaboration.stores import OPENERS, open_store, prefixed

ROOT = Path(__file__).resolve().parents[2]


def test_a_path_in_all_its_forms_is_one_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "a store"
    spelled = f"file://{tmp_path}/a%20store"
    forms = [place, str(place), "a store", "./a store/", spelled, f"{place}/../a store"]
    open_store(place).put_if_absent("a", b"1")
    for form in forms:
        store = open_store(form)
        assert store.url == str(place)
        assert store.read("a") == b"1"


def test_opening_a_path_makes_nothing(tmp_path):
    store = open_store(tmp_path / "store")
    assert store.list("") == [] and store.size("a") is None
    assert list(tmp_path.iterdir()) == []


def test_memory_of_one_name_is_one_store_and_of_another_another():
    first = open_store("memory://test-open-store")
    first.put_if_absent("a/b", b"1")
    assert open_store("memory://test-open-store").list("") == ["a/b"]
    assert open_store("memory://test-open-store/a").read("b") == b"1"
    assert open_store("memory://test-open-store-2").list("") == []


def test_the_address_of_a_store_opens_it_again(opened):
    store = opened()
    for each in (store, prefixed(store, "forks/one")):
        each.put_if_absent("a", each.url.encode())
        again = open_store(each.url)
        assert again.url == each.url
        assert again.read("a") == each.url.encode()
        assert again.list("") == each.list("")


@pytest.mark.parametrize("url", ["ftp://host/a", "az://container/a", "http://a/b"])
def test_an_unknown_scheme_names_the_known_ones(url):
    with pytest.raises(ValueError, match=url) as raised:
        open_store(url)
    for scheme in OPENERS:
        assert f"{scheme}://" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file://elsewhere/a",
        "file://",
        "memory://",
        "memory://a/../b",
        "s3://",
        "s3:///a",
        "s3://bucket/../a",
        "s3://bucket/a b",
        "s3://bucket//a",
        "gs://bucket/.a",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match=url or "empty"):
        open_store(url)


def test_a_library_that_is_not_installed_is_told_by_its_extra():
    # A process of its own: what is imported here already stays as it is.
    code = (
        "import sys\n"
        "sys.modules['s3fs'] = sys.modules['gcsfs'] = None\n"
        "from fusion_jax.collaboration.stores import open_store\n"
        "for url in sys.argv[1:]:\n"
        "    try:\n"
        "        open_store(url)\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "s3://bucket/a", "gs://bucket/a"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    s3, gs = done.stdout.splitlines()
    assert s3.startswith("s3://bucket/a: this kind of store needs the module")
    assert "pip install 'fusion_jax[s3]'" in s3
    assert gs.startswith("gs://bucket/a: this kind of store needs the module")
    assert "pip install 'fusion_jax[gcs]'" in gs


def test_a_profile_that_is_none_is_told(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"s3://bucket/a: .*nobody.*AWS_PROFILE"):
        open_store("s3://bucket/a")


def test_names_have_a_longest_segment_and_a_greatest_length():
    assert is_name("x" * SEGMENT) and not is_name("x" * (SEGMENT + 1))
    longest = "/".join(["x" * 99] * (TOTAL // 100)) + "/x"
    assert len(longest) > TOTAL and not is_name(longest)
    assert is_name(longest[:TOTAL].rstrip("/"))
    assert check("a.b/c=d_e-f") == "a.b/c=d_e-f"
    for prefix in ("", "a", "a/", "a/b.", "-"):
        assert check_prefix(prefix) == prefix
