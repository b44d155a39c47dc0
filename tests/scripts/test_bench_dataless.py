"""The benchmark of merges by statistics: its inputs, its reference, our side."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"
LAYER = "transformer.h.0.attn.c_attn.weight"


@pytest.fixture
def script(monkeypatch):
    """The scripts of the folder by name; each finds the others."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


@pytest.fixture
def made(script, tmp_path):
    """Tiny models, and rows for each; (models, files of rows)."""
    script("merge_checkpoints").make(tmp_path, "gpt2", "tiny")
    models = [tmp_path / f"expert_{k}" for k in (1, 2, 3)]
    rows = [tmp_path / "rows" / f"{model.name}.npy" for model in models]
    for k, file in enumerate(rows):
        script("dataless_rows").write(file, k, (8, 16), 512)
    return models, rows


def change(folder, tensor, by):
    """Adds a number to one entry of a tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor][0, 0] += by
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def our_job(way, models, rows, out):
    """Runs our side as the benchmark does; what it printed."""
    job = {
        "way": way,
        "models": [str(model) for model in models],
        "rows": [str(file) for file in rows],
        "out": str(out),
        "batch": 4,
        "alpha": 0.6,
    }
    done = subprocess.run(
        [sys.executable, "-P", BENCH / "dataless_ours.py", json.dumps(job)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_rows_are_the_same_each_time_and_have_no_padding(script, tmp_path):
    rows = script("dataless_rows")
    for name in ("one", "two"):
        rows.write(tmp_path / f"{name}.npy", 3, (64, 64), 20)
    rows.write(tmp_path / "other.npy", 4, (64, 64), 20)
    one, two, other = (
        np.load(tmp_path / f"{name}.npy") for name in ("one", "two", "other")
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    assert (one.min(), one.max()) == (0, 18)  # 19 is the padding
    read = rows.load(str(tmp_path / "one.npy"))
    assert len(read) == 64
    np.testing.assert_array_equal(read[5]["input_ids"], one[5])
    assert read[5]["attention_mask"].tolist() == [1] * 64


def test_inputs_of_the_first_layer_are_those_of_the_model(script, made):
    import jax
    import jax.numpy as jnp

    models, rows = made
    ours = script("dataless_ours")
    seen = {}

    def tap(name, x, y):
        del y
        seen[name] = x

    batch = ours.batches_of(str(rows[0]), 8)[0]
    model = ours.network(str(models[0]))
    params = jax.tree.map(jnp.asarray, ours.mapped(str(models[0])))
    model.apply(params, batch, tap=tap)
    x = np.asarray(seen["encoder/layer_0/attention/qkv/kernel"])
    wanted = script("dataless_check").inputs(models[0], np.load(rows[0]))
    np.testing.assert_allclose(x.reshape(wanted.shape), wanted, atol=1e-5)
    # All tokens of the last layer, as in the peer.
    assert seen["encoder/layer_1/mlp/down/kernel"].shape == (8, 16, 256)


@pytest.mark.slow
def test_our_ways_agree_with_each_other_and_with_the_formula(script, made, tmp_path):
    models, rows = made
    for way in ("layers", "files"):
        seconds = our_job(way, models, rows, tmp_path / way)
        assert min(seconds.values()) >= 0
        assert {"import", "compile", "merge"} <= set(seconds)
    places = [tmp_path / way / "model" for way in ("layers", "files")]
    assert script("merge_agreement").distance(*places)["max_abs"] < 1e-6
    check = script("dataless_check").against_formula
    for place in places:
        found = check(place, models, rows, 0.6)
        assert found["max_abs"] < 1e-6 < found["moved"]
    # Of another alpha, or of a weight that moved, it is not the solution.
    assert check(places[0], models, rows, 1.0)["max_abs"] > 1e-6
    change(places[0], LAYER, 1e-3)
    assert check(places[0], models, rows, 0.6)["max_abs"] == pytest.approx(
        1e-3, rel=1e-2
    )


@pytest.mark.slow
def test_the_benchmark_runs_without_peers(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCH / "dataless.py", "--workdir", tmp_path, "--size", "tiny",
         "--parts", "fisher", "growth", "--repeats", "1", "--models", "2", "5",
         "--table", tmp_path / "table.md"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["fisher"]["sides"]["ours"]["runs"]) == 1
    assert record["fisher"]["phases"]["ours"]["collect"] > 0
    for way in ("layers", "files", "fisher"):
        assert list(record["growth"][way]) == ["2", "5"]
        for one in record["growth"][way].values():
            assert one["sides"][f"ours_{way}"]["wall"]["min"] > 0
    assert "| fisher | 5 |" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "out").exists()
    weights = [
        tmp_path / "tiny" / "gpt2" / f"expert_{k}" / "model.safetensors" for k in (1, 5)
    ]
    assert weights[0].samefile(weights[1])
