import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from fusion_jax import MERGES
from tests.checkpoints.folders import SHAPES, tensors_of, write_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and three models."""
    root = tmp_path_factory.mktemp("merge")
    for seed, name in enumerate(("origin", "A", "B", "C")):
        write_folder(root / name, tensors_of(seed))
    (root / "origin" / "tokenizer_config.json").write_text("{}")
    return root


@pytest.fixture
def merge(command, folders, monkeypatch):
    """The command, run beside the folders."""
    monkeypatch.chdir(folders)
    return lambda *words: command("merge", *words)


TIES = (
    *("--method", "ties", "--base", "origin", "--models", "A", "B", "C"),
    *("--weights", "0.3", "0.3", "0.3", "--set", "density=0.2"),
    *("--set", "trim_scope=model", "--dtype", "bfloat16", "--seed", "0"),
)
MODELS = ("--models", "A", "B", "C")


def test_the_command_writes_a_model_that_says_how_it_was_made(merge, folders, tmp_path):
    out = tmp_path / "merged"
    code, said, error = merge(*TIES, "--out", out)
    assert code == 0, error
    assert f"model: {out}" in said and "Traceback" not in error
    found = load_file(out / "model.safetensors")
    stack = {n: np.stack([tensors_of(k)[n] for k in (1, 2, 3)]) for n in SHAPES}
    base = {n: tensors_of(0)[n] for n in SHAPES}
    whole = MERGES["ties"].function(stack, np.full(3, 0.3), base=base)
    for name, values in whole.items():
        assert found[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(
            found[name].astype(np.float32), values, rtol=2**-8, err_msg=name
        )
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (out / "tokenizer_config.json").is_file()
    record = json.loads((out / "merge.json").read_text())
    assert record["tensors"]["scale"] == {
        "method": "ties",
        "sources": [["A", "scale"], ["B", "scale"], ["C", "scale"]],
        "base": ["base", "scale"],
        "coefficients": [0.3, 0.3, 0.3],
        "options": {
            "density": 0.2,
            "scale": 1.0,
            "trim_scope": "model",
            "elect": "unweighted",
            "aggregate": "mean",
        },
        "norm": pytest.approx(float(abs(found["scale"][0])), rel=1e-6),
    }
    card = (out / "README.md").read_text()
    for word in ("ties", "density", "unweighted", "--set trim_scope=model"):
        assert word in card
    for folder in ("origin", "A", "B", "C"):
        data = (folders / folder / "model.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest() in card
    for file in out.iterdir():
        data = file.read_bytes()
        for place in (folders, tmp_path):
            assert str(place).encode() not in data, file.name


def test_a_dry_run_tells_the_plan_and_writes_nothing(merge, tmp_path):
    code, said, error = merge(*TIES, "--out", tmp_path / "out", "--dry-run")
    assert code == 0, error
    assert said.startswith("7 tensors, ") and "of memory" in said
    assert "ties: A 0.3, B 0.3, C 0.3; 'density': 0.2" in said
    assert not list(tmp_path.iterdir())
    # No --out is needed for that.
    code, said, error = merge(*TIES, "--dry-run", "--json", "--quiet")
    assert (code, error) == (0, "")
    record = json.loads(said)
    assert record["methods"] == ["copy", "ties"] and record["tensors"] == 7
    sizes = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert record["bytes_out"] == 2 * sizes + 8 * 5
    assert record["bytes_in"] == 4 * (4 * sizes + 8 * 5)
    assert record["out_dtype"] == "bfloat16" and record["memory_bytes"] > 0


def test_a_mergekit_file_is_run_and_kept(merge, folders, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: linear\nmodels:\n  - {model: A, parameters: {weight: 3}}\n"
        "  - {model: B, parameters: {weight: 1}}\ndtype: float32\n"
    )
    out = tmp_path / "out"
    code, said, error = merge(recipe, "--out", out, "--json")
    assert code == 0, error
    assert json.loads(said)["out"] == str(out)
    found = load_file(out / "model.safetensors")
    for name in SHAPES:
        mean = 0.75 * tensors_of(1)[name] + 0.25 * tensors_of(2)[name]
        np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6)
    assert (out / "mergekit_config.yml").read_text() == recipe.read_text()
    assert "recipe.yml" in json.loads((out / "merge.json").read_text())["command"]

    code, _, error = merge(recipe, "--method", "ties", "--out", tmp_path / "two")
    assert code == 2 and "--method: a mergekit file says these itself" in error
    code, _, error = merge(tmp_path / "no.yml", "--out", tmp_path / "two")
    assert code == 2 and "no such file" in error
    recipe.write_text("merge_method: linear\nmodels: [{model: A}, {model: nowhere}]")
    code, _, error = merge(recipe, "--out", tmp_path / "two")
    assert code == 1 and "nowhere" in error and "Traceback" not in error


def test_the_methods_are_listed(merge):
    code, said, _ = merge("--methods")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == sorted(MERGES)
    code, said, _ = merge("--methods", "--json")
    rows = json.loads(said)
    assert code == 0 and rows["slerp"]["experts"] == [2, 2]
    assert rows["dare"]["needs"] == ["base", "key"]


WRONG = {
    "a method that is mistyped": (
        ("--method", "tise", *MODELS),
        "unknown method 'tise'; did you mean ties? There are",
    ),
    "a method that is none": (("--method", "zzzz", *MODELS), "There are arcee_fusion"),
    "an option that is mistyped": (
        (*TIES, "--set", "densty=0.2"),
        "--set densty: ties has no such option; did you mean density? It has density",
    ),
    "a density in per cent": ((*TIES, "--set", "density=20"), "20 is no share"),
    "a density in words": ((*TIES, "--set", "density=few"), "few is no share"),
    "an option without a value": ((*TIES, "--set", "density"), "write NAME=VALUE"),
    "a number where a word is wanted": (
        (*TIES, "--set", "elect=1"),
        "--set elect: 1 given, like 'unweighted' wanted",
    ),
    "a word that is no choice": (
        (*TIES, "--set", "elect=all"),
        "elect: 'all' is not one of none, weighted, unweighted",
    ),
    "values that are not one a model": (
        (*TIES, "--set", "density=0.1,0.2"),
        "--set density: 2 values for 3 models",
    ),
    "weights whose sum is zero": (
        ("--method", "linear", *MODELS, "--weights", "1", "-2", "1"),
        "sum to 0, and linear divides by the sum",
    ),
    "weights of both signs in a mean": (
        ("--method", "ties", "--base", "origin", *MODELS, "--weights", "1", "-1", "1"),
        "--set aggregate=sum",
    ),
    "a weight too few": (
        ("--method", "linear", *MODELS, "--weights", "1", "2"),
        "--weights: 2 numbers for 3 models",
    ),
    "a weight that is none": (
        ("--method", "linear", *MODELS, "--weights", "1", "nan", "1"),
        "no finite numbers",
    ),
    "one model where two are needed": (
        ("--method", "slerp", "--models", "A"),
        "slerp: merges 2 models, 1 given",
    ),
    "no base": (("--method", "ties", *MODELS), "ties: needs --base"),
    "statistics that no flag can give": (
        ("--method", "fisher", *MODELS),
        "fisher: needs statistics",
    ),
    "a description that no flag can give": (
        ("--method", "git_rebasin", "--models", "A", "B"),
        "git_rebasin: needs spec",
    ),
    "no models": (("--method", "ties"), "--models: no folder given"),
    "nothing": ((), "give --method and --models, or a mergekit file"),
    "a dtype of integers": (
        ("--method", "linear", *MODELS, "--dtype", "int8"),
        "--dtype: dtype 'int8' is not one of",
    ),
    "a size that is none": (
        ("--method", "linear", *MODELS, "--shard-size", "big"),
        "--shard-size: 'big' is no size",
    ),
    "a flag that is none": (("--method", "linear", "--model", "A"), "--model"),
}


@pytest.mark.parametrize("words, told", WRONG.values(), ids=WRONG.keys())
def test_what_is_mistyped_is_told_with_code_two(merge, tmp_path, words, told):
    code, out, error = merge(*words, "--out", tmp_path / "out")
    assert (code, out) == (2, ""), error
    assert told in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_an_output_must_be_named_and_new(merge, tmp_path):
    words = ("--method", "linear", *MODELS)
    code, _, error = merge(*words)
    assert code == 2 and "--out: no folder given" in error
    code, _, error = merge(*words, "--out", tmp_path)
    assert code == 1 and "choose another folder, or pass --overwrite" in error
    assert "Errno" not in error
    code, _, error = merge(*words, "--out", tmp_path / "new" / "out")
    assert code == 0, error
    code, _, error = merge(*words, "--out", tmp_path / "new" / "out", "--overwrite")
    assert code == 0, error
    code, _, error = merge(*words, "--out", "A", "--overwrite")
    assert code == 1 and "holds the model 'A'" in error


def test_models_that_do_not_fit_end_with_one(merge, tmp_path):
    out = ("--out", tmp_path / "out")
    code, _, error = merge("--method", "linear", "--models", "A", "nowhere", *out)
    assert code == 1 and "nowhere is not there" in error
    tensors = tensors_of(1) | {"scale": np.ones(2, np.float32)}
    write_folder(tmp_path / "small", tensors)
    words = ("--method", "linear", "--models", "A", tmp_path / "small")
    code, _, error = merge(*words, *out)
    assert code == 1 and "scale: shape (1,) in A, (2,) in small" in error
    assert "Traceback" not in error


def test_nan_is_refused_or_merged_when_told(merge, tmp_path):
    tensors = tensors_of(1) | {"scale": np.array([np.nan], np.float32)}
    write_folder(tmp_path / "bad", tensors)
    words = ("--method", "linear", "--models", "A", tmp_path / "bad")
    words += ("--out", tmp_path / "out")
    code, _, error = merge(*words)
    assert code == 1 and "bad: scale (1 of 1)" in error
    assert "pass --allow-nonfinite" in error and "Traceback" not in error
    code, _, error = merge(*words, "--allow-nonfinite")
    assert code == 0 and "warning" not in error, error
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["tensors"]["scale"]["norm"] is None
    assert "--allow-nonfinite" in record["command"]


def test_a_base_that_is_not_read_gives_its_config(merge, tmp_path):
    out = tmp_path / "out"
    code, _, error = merge(
        "--method", "linear", "--base", "origin", *MODELS, "--out", out
    )
    assert code == 0 and "note: linear does not read --base" in error
    record = json.loads((out / "merge.json").read_text())
    assert record["tensors"]["scale"]["coefficients"] == [pytest.approx(1 / 3)] * 3
    assert record["tensors"]["scale"]["base"] is None


def test_models_of_one_name_are_told_apart(merge, tmp_path):
    for seed, parent in enumerate(("x", "y")):
        write_folder(tmp_path / parent / "model", tensors_of(seed))
    code, said, error = merge(
        *("--method", "linear", "--models", tmp_path / "x/model", tmp_path / "y/model"),
        *("--dry-run", "--json"),
    )
    assert code == 0, error
    assert list(json.loads(said)["sources"]) == ["1_model", "2_model"]
