"""The benchmark of merges: its checkpoints, its clock, its comparisons, our side."""

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


@pytest.fixture
def script(monkeypatch):
    """The scripts of the folder by name; each finds the others."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


def model(folder, **tensors):
    """A folder with these tensors."""
    folder.mkdir()
    arrays = {name: np.asarray(x, np.float32) for name, x in tensors.items()}
    save_file(arrays, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_checkpoints_are_the_same_each_time_and_experts_are_near_the_base(
    script, tmp_path, family
):
    make = script("merge_checkpoints").make
    found = [make(tmp_path / name, family, "tiny") for name in ("one", "two")]
    assert found[0] == found[1]
    for label in ("base", "expert_1", "expert_4"):
        files = [tmp_path / n / label / "model.safetensors" for n in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    base, first, second = (
        load_file(tmp_path / "one" / label / "model.safetensors")
        for label in ("base", "expert_1", "expert_2")
    )
    assert len(base) == found[0]["tensors"]
    assert sum(x.size for x in base.values()) == found[0]["parameters"]
    steps = [
        np.concatenate([(x[name] - base[name]).ravel() for name in base])
        for x in (first, second)
    ]
    assert np.std(steps[0]) == pytest.approx(0.002, rel=0.02)
    assert abs(np.corrcoef(steps)[0, 1]) < 0.02


def test_checkpoints_open_in_transformers(script, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    kinds = {
        "llama": "AutoModelForCausalLM",
        "bert": "AutoModelForSequenceClassification",
        "gpt2": "AutoModelForSequenceClassification",
    }
    for family, kind in kinds.items():
        script("merge_checkpoints").make(tmp_path / family, family, "tiny")
        loaded, report = getattr(transformers, kind).from_pretrained(
            tmp_path / family / "base", output_loading_info=True
        )
        assert not any(report.values()), report
        base = load_file(tmp_path / family / "base" / "model.safetensors")
        assert set(loaded.state_dict()) == set(base)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            tmp_path / family / "base"
        )
        assert tokenizer("t1 t7 t999999")["input_ids"] == [1, 7, 511]


def test_memory_of_a_command_counts_its_children_and_not_its_files(script, tmp_path):
    hold = "import time; x = b'1' * (64 << 20); time.sleep(0.5)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    measure = script("merge_processes").measure
    run = measure([sys.executable, "-c", code], tmp_path / "log", os.environ)
    assert run["code"] == 0
    assert run["wall"] > 0.5
    assert 64 < run["anon_mb"] < 128
    assert measure(["false"], tmp_path / "log", os.environ)["code"] == 1


def test_the_largest_difference_is_found_and_named(script, tmp_path):
    base = model(tmp_path / "base", a=[0, 0], b=[3, 3], c=[1])
    one = model(tmp_path / "one", a=[1, 2], b=[3, 3], c=[1])
    other = model(tmp_path / "other", a=[1, 2.5], b=[3, 9], d=[1])
    distance = script("merge_agreement").distance
    found = distance(one, other)
    assert (found["max_abs"], found["where"]) == (6, "b")
    assert found["different"] == 0.5
    assert found["only_in_one"] == ["c", "d"]
    found = distance(one, other, base)
    assert (found["max_abs"], found["where"], found["at_base"]) == (0.5, "a", 1)
    broken = model(tmp_path / "nan", a=[1, float("nan")], b=[3, 9])
    assert np.isnan(distance(broken, other)["max_abs"])


def test_moments_of_twice_the_exact_sum_are_twice_its_moments(script, tmp_path):
    base = model(tmp_path / "base", a=[1, 1], b=[2])
    experts = [
        model(tmp_path / "one", a=[2, 1], b=[2]),
        model(tmp_path / "two", a=[1, 3], b=[0]),
    ]
    twice = model(tmp_path / "twice", a=[2, 3], b=[0])
    found = script("merge_agreement").moments({"ours": twice}, base, experts, 0.5)
    exact = np.array([0.5, 1, -1])
    assert found["exact"]["mean"] == pytest.approx(exact.mean())
    assert found["exact"]["std"] == pytest.approx(exact.std())
    assert found["ours"]["slope"] == pytest.approx(2)
    assert found["ours"]["std_over_exact_std"] == pytest.approx(2)


def test_recipes_say_the_same_to_mergekit_and_to_us(script, tmp_path):
    recipes = script("merge_recipes")
    for method, recipe in recipes.RECIPES.items():
        file = recipes.mergekit_file(method, tmp_path, tmp_path / f"{method}.yml")
        content = json.loads(file.read_text())
        assert len(content["models"]) == len(recipe.models)
        assert ("base_model" in content) == (recipe.base is not None)
        given = recipes.mergekit_parameters(method)
        for name, value in {**given, "t": None}.items():
            own = [one.get("parameters", {}).get(name) for one in content["models"]]
            assert name == "t" or own == value


@pytest.mark.slow
def test_our_side_is_measured_without_peers(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCH / "merge.py", "--workdir", tmp_path, "--size", "tiny",
         "--methods", "linear", "dare_ties", "--repeats", "2",
         "--table", tmp_path / "table.md"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    linear = record["commands"]["llama"]["linear"]
    assert len(linear["sides"]["ours"]["runs"]) == 2
    assert 0 < linear["disk"]["share"] < 1
    assert set(record["commands"]["llama"]["dare_ties"]["moments"]) == {"ours", "exact"}
    assert record["in_memory"]["llama"]["linear"]["ours"]["min"] > 0
    assert "| linear | ours |" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "out").exists()
