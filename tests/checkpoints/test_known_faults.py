"""Faults of public merge tools that concern files, and that are not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml

from fusion_jax.checkpoints.direct_plan import direct_plan
from fusion_jax.cli.main import main

RANDOM = np.random.default_rng(0)


def model(folder, *, positions=32, scale=1.0, **tensors):
    folder.mkdir()
    values = tensors or {"bert.encoder.layer.0.weight": scale * np.ones((4, 3))}
    safetensors.numpy.save_file(
        {k.replace("__", "."): np.asarray(v, np.float32) for k, v in values.items()},
        folder / "model.safetensors",
    )
    config = {"model_type": "bert", "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def merge(tmp_path, *arguments, out="out"):
    return main(["merge", *arguments, "--out", str(tmp_path / out), "--quiet"])


def test_the_config_is_that_of_the_first_model_whatever_the_run(tmp_path):
    a = model(tmp_path / "a", positions=32)
    b = model(tmp_path / "b", positions=64)
    for order, expected in (((a, b), 32), ((b, a), 64)):
        for run in range(2):
            out = f"{expected}_{run}"
            arguments = ("--method", "linear", "--models", *order)
            assert merge(tmp_path, *arguments, out=out) == 0
            config = json.loads((tmp_path / out / "config.json").read_text())
            assert config["max_position_embeddings"] == expected


def test_a_sum_of_zero_is_refused_and_not_divided_by(tmp_path, capsys):
    a, b = model(tmp_path / "a"), model(tmp_path / "b")
    arguments = ("--method", "linear", "--models", a, b, "--weights", "1", "-1")
    assert merge(tmp_path, *arguments) == 2
    assert "sum to 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert merge(tmp_path, *arguments, "--set", "normalize=false") == 0


def test_a_model_of_weight_zero_still_has_its_nan_named(tmp_path, capsys):
    a = model(tmp_path / "a", x=[np.nan, 1.0])
    b = model(tmp_path / "b", x=[1.0, 1.0])
    arguments = ("--method", "linear", "--models", a, b, "--weights", "0", "1")
    assert merge(tmp_path, *arguments) == 1
    assert "a: x (1 of 2)" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_tensors_are_what_the_files_hold_and_not_what_a_table_expects(tmp_path):
    # A masked language model without a pooler, and a layout nobody has heard of.
    names = {
        "cls__predictions__bias": [1.0, 2.0],
        "my__odd__kernel": np.ones((2, 2, 2)),
    }
    a, b = model(tmp_path / "a", **names), model(tmp_path / "b", **names)
    assert merge(tmp_path, "--method", "slerp", "--models", a, b) == 0
    merged = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == {"cls.predictions.bias", "my.odd.kernel"}


@pytest.mark.parametrize("base", [False, True])
def test_the_cards_front_matter_is_yaml_and_names_no_folder_of_this_disk(
    tmp_path, base
):
    a, b = model(tmp_path / "a: b"), model(tmp_path / "b")
    arguments = ["--method", "linear", "--models", a, b]
    if base:
        arguments += ["--base", model(tmp_path / "base")]
    assert merge(tmp_path, *arguments) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    for file in (tmp_path / "out").iterdir():
        if file.suffix in (".md", ".json"):
            assert str(tmp_path) not in file.read_text(), file


def test_relative_names_and_no_network_give_a_whole_folder(tmp_path):
    for name in ("a", "b"):
        model(tmp_path / name)
    words = "merge --method linear --models a b --out out".split()
    found = subprocess.run(
        [sys.executable, "-m", "fusion_jax.cli.main", *words],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    held = {file.name for file in (tmp_path / "out").iterdir()}
    assert held == {"model.safetensors", "config.json", "README.md", "merge.json"}


def test_one_seed_is_one_output_and_another_is_another(tmp_path):
    base = model(tmp_path / "base", x=np.zeros((8, 64)))
    a = model(tmp_path / "a", x=RANDOM.normal(size=(8, 64)))
    b = model(tmp_path / "b", x=RANDOM.normal(size=(8, 64)))
    arguments = ["--method", "dare", "--base", base, "--models", a, b]
    held = {}
    for out, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert merge(tmp_path, *arguments, "--seed", str(seed), out=out) == 0
        held[out] = (tmp_path / out / "model.safetensors").read_bytes()
    assert held["one"] == held["two"]
    assert held["one"] != held["three"]


def test_a_base_that_linear_counts_as_an_input_is_noted(tmp_path, capsys):
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 10.0)):
        model(tmp_path / name, x=[value])
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: linear\nbase_model: base\n"
        "models: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    )
    assert main(["merge", str(recipe), "--out", str(tmp_path / "out")]) == 0
    assert "base" in capsys.readouterr().err
    merged = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_allclose(merged["x"], [11 / 3], rtol=1e-6)


def test_a_tied_model_lends_its_embedding_as_a_head(tmp_path):
    table, head = "model__embed_tokens__weight", "lm_head__weight"
    tied = model(tmp_path / "tied", **{table: np.full((4, 2), 1.0)})
    own = {table: np.full((4, 2), 3.0), head: np.full((4, 2), 5.0)}
    free = model(tmp_path / "free", **own)
    arguments = ("--method", "linear", "--models", tied, free)
    assert merge(tmp_path, *arguments) == 0
    merged = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert (merged["model.embed_tokens.weight"] == 2).all()
    assert (merged["lm_head.weight"] == 3).all()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_tied_models_alone_give_one_tensor(tmp_path):
    table = "model__embed_tokens__weight"
    folders = [
        model(tmp_path / name, **{table: np.full((4, 2), value)})
        for name, value in (("a", 1.0), ("b", 3.0))
    ]
    assert merge(tmp_path, "--method", "linear", "--models", *folders) == 0
    merged = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    "method, weight",
    [
        ("linear", 0.5),
        ("task_arithmetic", 1),
        ("consensus", 1),
        ("geometric_median", 0.5),
    ],
)
def test_task_vectors_are_added_whole_unless_weights_are_given(
    tmp_path, method, weight
):
    folders = [Path(model(tmp_path / name)) for name in ("base", "a", "b")]
    plan = direct_plan(method, folders[1:], base=folders[0])
    assert plan.tensors[0].coefficients == (weight, weight)


def test_quantised_models_are_refused(tmp_path, capsys):
    a, b = model(tmp_path / "a"), model(tmp_path / "b")
    file = tmp_path / "b" / "config.json"
    file.write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    assert merge(tmp_path, "--method", "linear", "--models", a, b) == 1
    assert "b: quantised" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_config_says_the_dtype_that_the_files_have(tmp_path):
    folders = [model(tmp_path / name) for name in ("a", "b")]
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps({"model_type": "bert", "dtype": "bfloat16"}))
    assert merge(tmp_path, "--method", "linear", "--models", *folders) == 0
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    )
