import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture
def changed(place, tmp_path):
    """The classifier with one matrix moved."""
    tensors = load_file(place / "classifier" / "model.safetensors")
    name = next(n for n in tensors if "layer.1" in n and tensors[n].ndim == 2)
    tensors[name] = tensors[name] + np.float32(0.5)
    folder = tmp_path / "changed"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_layers_pairs_findings_and_advice_are_printed(command, place, changed):
    code, out, error = command(
        "inspect", place / "classifier", changed, "--base", place / "encoder"
    )
    assert code == 0, error
    head, *rows = out.splitlines()
    assert head.startswith("2 models against the base ")
    names = [row.split("  ")[0] for row in rows]
    for name in ("A", "B", "A·B", "embeddings", "layer 0", "layer 1", "total"):
        assert name in names
    assert "prefix: names of classifier, changed begin with 'bert.'" in out
    assert "missing: in classifier, changed, not in the base: " in out


def test_numbers_for_machines_and_files_are_the_same(command, place, changed, tmp_path):
    out = tmp_path / "out"
    code, said, error = command(
        "inspect",
        changed,
        "--base",
        place / "classifier",
        "--by",
        "tensor",
        "--json",
        "--quiet",
        "--out",
        out,
    )
    assert (code, error) == (0, "")
    record = json.loads(said)
    assert record == json.loads((out / "inspect.json").read_text())
    moved = [
        group for group in record["groups"][:-1] if group["models"]["changed"]["norm"]
    ]
    (group,) = moved
    expected = 0.5 * np.sqrt(group["elements"])
    assert group["models"]["changed"]["norm"] == pytest.approx(expected, rel=1e-6)
    assert sorted(file.name for file in out.iterdir()) == [
        "inspect.html",
        "inspect.json",
        "norms.png",
    ]


def test_the_places_of_files_are_printed(command, place, changed, tmp_path):
    code, said, _ = command(
        "inspect", place / "classifier", changed, "--out", tmp_path / "out"
    )
    assert code == 0
    for name in ("inspect.html", "inspect.json", "cosine.png", "norms.png"):
        assert str(tmp_path / "out" / name) in said
        assert (tmp_path / "out" / name).is_file()


def test_wrong_input_is_told_without_a_traceback(command, place, tmp_path):
    code, _, error = command("inspect", place / "classifier")
    assert code == 2 and "give --base" in error
    code, _, error = command(
        "inspect", place / "classifier", tmp_path / "no/where/else"
    )
    assert code == 1 and "does not exist" in error
    folder = tmp_path / "other"
    folder.mkdir()
    save_file({"w": np.ones(2, np.float32)}, folder / "model.safetensors")
    code, out, error = command("inspect", place / "classifier", folder)
    assert (code, out) == (1, "") and "no tensor can be compared" in error
    assert "Traceback" not in error
