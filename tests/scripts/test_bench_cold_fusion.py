"""The benchmark of a round: its parts on a tiny model, and the whole of it."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.collaboration.repository import open_repository
from fusion_jax.collaboration.stores import open_store
from tests.small_models import write_model

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"


@pytest.fixture
def script(monkeypatch):
    """The scripts of the folder by name; each finds the others."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


@pytest.fixture
def url(script, tmp_path):
    """A repository of a tiny model."""
    write_model(tmp_path / "encoder")
    place = str(tmp_path / "repository")
    script("cold_fusion_jobs").begin(place, str(tmp_path / "encoder"), "")
    return place


def leaves_of(url, round_, cache):
    """Leaves of a base by name."""
    folder = open_repository(url, cache=cache).base_folder(round_)
    return trees.flatten({"encoder": hf.load(folder).params["encoder"]})


def test_a_counted_store_counts_what_passes(script, tmp_path):
    inner = open_store(tmp_path / "store")
    store = script("counting_store").CountingStore(inner)
    (tmp_path / "large").write_bytes(b"x" * 1000)
    assert store.put_if_absent("small", b"abc")
    assert not store.put_if_absent("small", b"another")
    for _ in range(2):  # the second time it is there
        store.upload(tmp_path / "large", "weights")
    assert store.up == 1003
    store.download("weights", tmp_path / "back")
    assert store.read("small") == b"abc"
    assert store.down == 1003 and store.url == inner.url
    assert store.compare_and_set("mark", b"12345", None)
    assert not store.compare_and_set("mark", b"1", None)
    assert store.up == 1008
    assert store.read_versioned("mark").data == b"12345" and store.down == 1008
    assert store.list("") == inner.list("") and store.size("weights") == 1000


def test_a_derived_step_is_as_long_as_the_training_was(script):
    stepped = script("cold_fusion_jobs").stepped
    random = np.random.default_rng(0)
    leaves = {"encoder": {"a": random.normal(size=(8, 4)), "b": np.ones(3)}}
    body = {"encoder": {k: x.astype(np.float32) for k, x in leaves["encoder"].items()}}
    norms = {"encoder/a": 0.25, "encoder/b": 0.0}
    one, two, again = (stepped(body, norms, seed)["encoder"] for seed in (1, 2, 1))
    np.testing.assert_allclose(
        np.linalg.norm(one["a"] - body["encoder"]["a"]), 0.25, rtol=1e-4
    )
    np.testing.assert_array_equal(one["b"], body["encoder"]["b"])
    np.testing.assert_array_equal(one["a"], again["a"])
    assert (one["a"] != two["a"]).any()


def test_a_round_passes_through_its_parts(script, url, tmp_path):
    jobs = script("cold_fusion_jobs")
    trained = jobs.contributor(url, str(tmp_path / "c0"), 0, 16, 16, 1)
    assert set(trained["seconds"]) == {"download", "train", "upload"}
    assert min(trained["seconds"].values()) > 0 and trained["tokens"] > 0
    weights = open_repository(url, cache=tmp_path / "c").base(0).weights.bytes
    # The base came and a body went; config and tokenizer came, a manifest went.
    assert trained["down"] > weights and trained["up"] > weights
    assert max(trained["norms"].values()) > 0
    others = jobs.derived(url, str(tmp_path / "o"), [1, 2], 16, trained["norms"])
    assert others["down"] == pytest.approx(trained["down"], abs=64)
    assert others["up"] == pytest.approx(trained["up"], abs=64)
    assert jobs.idle(url, str(tmp_path / "i"))["waiting"] == 3
    fuser = jobs.fuser(url, str(tmp_path / "f"))
    assert fuser["accepted"] == 3 and not fuser["rejected"]
    assert set(fuser["seconds"]) == {"download", "screen", "fuse", "promote"}
    assert fuser["down"] > 4 * weights and 0 < fuser["up"] - weights < 2 * weights
    # The derived went as far as the trained: a third of their squares, all together.
    before, after = (leaves_of(url, round_, tmp_path / "f") for round_ in (0, 1))
    moved = np.sqrt(sum(np.sum((after[n] - x) ** 2) for n, x in before.items()))
    norm = np.sqrt(sum(x**2 for x in trained["norms"].values()))
    np.testing.assert_allclose(moved, norm / np.sqrt(3), rtol=0.1)
    for method, same in (("mean", True), ("coordinate_median", False)):
        out = str(tmp_path / f"{method}.safetensors")
        alone = jobs.fuse_alone(url, str(tmp_path / "f"), method, out)
        assert alone["members"] == 3 and alone["same_as_promoted"] is same


def test_stacked_and_alone_learn_from_the_same_tokens(script, tmp_path):
    jobs = script("training_jobs")
    encoder = str(write_model(tmp_path / "encoder"))
    sizes = {"rows": 16, "max_length": 16, "epochs": 1}
    whole = [
        jobs.stack(encoder, 2, together, repeats=0, **sizes) for together in (1, 2)
    ]
    each = [jobs.alone(encoder, number, repeats=1, **sizes) for number in range(2)]
    tokens = sum(one["tokens"] for one in each)
    assert tokens > 0 and {one["tokens"] for one in whole} == {tokens}
    assert len(each[0]["seconds"]) == 1 and each[0]["first"] > 0


def test_one_contributor_is_refused(script, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["cold_fusion.py", "--workdir", "w", "--contributors", "1"]
    )
    with pytest.raises(SystemExit, match="2"):
        script("cold_fusion").parse()
    assert "--contributors: at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark_runs(tmp_path):
    encoder = write_model(tmp_path / "encoder")
    done = subprocess.run(
        [sys.executable, BENCH / "cold_fusion.py", "--workdir", tmp_path / "w",
         "--encoder", encoder, "--smoke", "--table", tmp_path / "table.md"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert list(record["round"]) == ["2", "3"]
    for count, one in record["round"].items():
        assert one["fuser"]["accepted"] == int(count)
        assert one["alone"]["mean"]["same_as_promoted"]
        assert one["fuser"]["anon_mb"] > 0
    ways = ("one program", "one after another", "processes")
    assert len({record["stacked"][way]["tokens"] for way in ways}) == 1
    table = (tmp_path / "table.md").read_text()
    assert "2 processes" in table and "fuse alone, mean" in table
    # Caches and repositories of a round are gigabytes.
    assert not list((tmp_path / "w").glob("round-*"))
