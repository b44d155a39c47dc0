"""Orbax checkpoints are merged as trees, and the result is one."""

import json

import numpy as np
from orbax.checkpoint import v1

from fusion_jax.checkpoints.orbax import save
from fusion_jax.cli.main import main

RANDOM = np.random.default_rng(0)


def made(folder, params):
    save(folder, params)
    return str(folder)


def tree():
    return {
        "dense": {
            "kernel": RANDOM.normal(size=(4, 3)).astype(np.float32),
            "bias": RANDOM.normal(size=3).astype(np.float32),
        }
    }


def test_trees_are_merged_and_saved_as_a_tree(tmp_path, capsys):
    one, two = tree(), tree()
    a, b = made(tmp_path / "a", one), made(tmp_path / "b", two)
    out = tmp_path / "out"
    arguments = ["--method", "linear", "--models", a, b, "--out", str(out), "--json"]
    assert main(["merge", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    merged = v1.load(str(out))
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            merged["dense"][name],
            (one["dense"][name] + two["dense"][name]) / 2,
            rtol=1e-6,
        )
    assert "weighted_average" in (out / "README.md").read_text()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_rows_of_a_tree_are_those_of_flax(tmp_path, capsys):
    base = {"dense": {"kernel": np.zeros((4, 3), np.float32)}}
    expert = {"dense": {"kernel": RANDOM.normal(size=(4, 3)).astype(np.float32)}}
    a, b = made(tmp_path / "a", base), made(tmp_path / "b", expert)
    options = ["--method", "della", "--base", a, "--models", b, "--dry-run", "--json"]
    assert main(["merge", *options]) == 0
    (way,) = json.loads(capsys.readouterr().out)["effective"]
    assert "'input_axis': -2" in way["options"]


def test_folders_of_two_kinds_are_refused(tmp_path, capsys):
    a = made(tmp_path / "a", tree())
    (tmp_path / "b").mkdir()
    arguments = ["--method", "linear", "--models", a, str(tmp_path / "b")]
    assert main(["merge", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert "no Orbax checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    a, b = made(tmp_path / "a", tree()), made(tmp_path / "b", tree())
    for file in (tmp_path / "b").rglob("*"):
        if file.is_file() and not file.name.startswith("_CHECKPOINT"):
            file.write_bytes(b"x")
    arguments = ["--method", "linear", "--models", a, b]
    assert main(["merge", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert str(tmp_path / "b") in capsys.readouterr().err
