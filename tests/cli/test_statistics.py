import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fusion_jax
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.statistics_file import read_statistics
from fusion_jax.data import load_task
from fusion_jax.data.tokenise import encode, load_tokenizer
from fusion_jax.models import build_model
from tests.small_models import LABELS, write_model, write_task

LINEARS = 14  # of a BERT of two layers: six each, pooler and classifier


@pytest.fixture(scope="module")
def owners(tmp_path_factory):
    """Two classifiers with their data, Grams and Fishers."""
    from fusion_jax.cli.main import main

    root = tmp_path_factory.mktemp("owners")
    for seed, name in enumerate("AB"):
        write_model(root / name, kind="single_label", labels=LABELS, seed=seed)
        write_task(root / f"data{name}")
        for kind in ("gram", "fisher"):
            words = ["statistics", "--kind", kind, "--model", str(root / name)]
            words += ["--data", str(root / f"data{name}"), "--examples", "5"]
            words += ["--seed", str(seed), "--max-length", "16", "--quiet"]
            words += ["--out", str(root / f"{kind}{name}.safetensors")]
            words += ["--output-gradients"] if kind == "gram" else []
            assert main(words) == 0
    return root


@pytest.fixture
def run(command, owners, monkeypatch):
    """The command, run beside the owners' files."""
    monkeypatch.chdir(owners)
    return command


MODELS = ("--models", "A", "B")
GRAMS = ("--statistics", "gramA.safetensors", "gramB.safetensors")
FISHERS = ("--statistics", "fisherA.safetensors", "fisherB.safetensors")


def test_the_file_holds_the_moments_of_the_rows_that_were_drawn(owners):
    found = read_statistics(owners / "gramB.safetensors")
    manifest = found.manifest
    assert (manifest.model, manifest.data, manifest.split) == ("B", "dataB", "train")
    assert manifest.examples == 5 and len(manifest.layers) == LINEARS
    # The embeddings of those rows, one by one, without padding.
    model = hf.load(owners / "B", kind="single_label")
    encoded = encode(
        load_task(owners / "dataB"), "train", load_tokenizer(owners / "B"), 16
    )
    rows = np.random.default_rng(1).permutation(12)[:5]
    embed = build_model(model.config, "single_label", 2).stages[0]
    hidden = []
    for row in rows:
        ids = encoded.columns["input_ids"][row][None]
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        batch["token_type_ids"] = encoded.columns["token_type_ids"][row][None]
        carry = embed.apply(model.params, None, batch)
        hidden.append(np.asarray(carry[0] if isinstance(carry, tuple) else carry)[0])
    x = np.concatenate(hidden).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    stem = "bert.encoder.layer.0.attention.self"
    for name in ("query", "key", "value"):
        tensor = f"{stem}.{name}.weight"
        np.testing.assert_allclose(
            found.gram(tensor), x.T @ x / len(x), rtol=1e-4, atol=1e-5
        )
        assert found.tokens(tensor) == len(x)
        assert manifest.layers[tensor].bias == f"{stem}.{name}.bias"
    assert len(manifest.counts) == LINEARS - 4  # q, k, v of a layer share theirs
    assert found.tokens("classifier.weight") == 5


def test_a_file_holds_neither_text_nor_places(owners):
    for kind in ("gram", "fisher"):
        data = (owners / f"{kind}A.safetensors").read_bytes()
        for word in (b"film", b"negative", str(owners).encode()):
            assert word not in data


def test_a_merge_by_grams_is_the_solve_of_every_layer(run, owners, tmp_path):
    out = tmp_path / "out"
    code, said, error = run(
        *("merge", "--method", "regmean", *MODELS, *GRAMS, "--weights", "1", "3"),
        *("--set", "alpha=0.7", "--set", "ridge=1e-3", "--out", out),
    )
    assert code == 0, error
    assert "regmean: 14 tensors by statistics, 27 averaged" in error
    assert "tensors: 27 averaged, 14 regressed" in said
    assert "each in merge_report.json" in said
    statistics = [read_statistics(owners / f"gram{n}.safetensors") for n in "AB"]
    models = [load_file(owners / n / "model.safetensors") for n in "AB"]
    found = load_file(out / "model.safetensors")
    row, differs = (0.25, 0.75), 0
    for name, values in found.items():
        mean = np.asarray(
            sum(
                c * m[name].astype(np.float64) for c, m in zip(row, models, strict=True)
            )
        )
        if name not in statistics[0].manifest.layers:
            np.testing.assert_allclose(values, mean, rtol=1e-5, atol=1e-7)
            continue
        grams = [s.gram(name)[:-1, :-1].astype(np.float64) for s in statistics]
        grams = [0.7 * g + 0.3 * np.diag(np.diag(g)) for g in grams]
        matrix = sum(c * g for c, g in zip(row, grams, strict=True))
        r = 1e-3 * np.trace(matrix) / len(matrix)
        right = sum(
            c * g @ m[name].T for c, g, m in zip(row, grams, models, strict=True)
        )
        wanted = np.linalg.solve(matrix + r * np.eye(len(matrix)), right + r * mean.T)
        np.testing.assert_allclose(values, wanted.T, rtol=1e-4, atol=1e-6)
        differs += np.abs(values - mean).max() > 1e-3
    assert differs == LINEARS
    command = json.loads((out / "merge.json").read_text())["command"]
    assert "--statistics gramA.safetensors gramB.safetensors" in command
    code, said, error = run("evaluate", out, "--data", "dataA", "--json")
    assert code == 0, error
    assert 0 <= json.loads(said)["score"] <= 1


def test_a_merge_by_fishers_is_that_of_memory(run, owners, tmp_path):
    words = ("merge", "--method", "fisher", *MODELS, *FISHERS, "--json", "--quiet")
    code, said, error = run(*words, "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    assert json.loads(said)["counts"] == {"weighted by Fisher": 41}
    models = [load_file(owners / n / "model.safetensors") for n in "AB"]
    fishers = [load_file(owners / f"fisher{n}.safetensors") for n in "AB"]
    wanted = fusion_jax.fisher(
        {n: np.stack([m[n] for m in models]) for n in models[0]},
        jnp.full(2, 0.5),
        statistics={n: np.stack([f[n] for f in fishers]) for n in models[0]},
    )
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)
    assert any(np.asarray(f).max() > 0 for f in fishers[0].values())


def test_mats_reads_the_gradients(run, tmp_path):
    words = ("merge", "--method", "mats", *MODELS, *GRAMS, "--set", "iterations=5")
    code, said, error = run(*words, "--out", tmp_path / "out")
    assert code == 0, error
    assert "27 averaged, 14 solved (conjugate gradient)" in said


def test_a_dry_run_checks_and_counts(run, tmp_path):
    words = ("merge", "--method", "regmean", *MODELS, "--dry-run", "--json", "--quiet")
    code, said, error = run(*words, *GRAMS, "--set", "biases=true")
    assert (code, error) == (0, "")
    record = json.loads(said)
    assert record["counts"] == {"averaged": 13, "regressed": 28}
    assert record["statistics"]["A"] == "gramA.safetensors"
    assert record["memory_bytes"] > 8 * 3 * 17 * 17
    code, said, error = run(*words, "--statistics", *GRAMS[:0:-1])
    assert code == 1 and said == ""
    assert "gramB.safetensors: is of the model B, and stands in the place" in error


def test_forms_of_wide_grams(run, owners, tmp_path):
    words = ("statistics", "--kind", "gram", "--model", "A", "--data", "dataA")
    words += ("--examples", "99", "--json", "--quiet")
    sizes = {}
    for form in ((), ("--blocks", "4"), ("--rank", "2")):
        out = tmp_path / f"x{len(sizes)}.safetensors"
        code, said, error = run(*words, *form, "--wider-than", "8", "--out", out)
        assert code == 0, error
        record = json.loads(said)
        assert record["examples"] == 12 and record["layers"] == LINEARS
        assert record["num_bytes"] == out.stat().st_size
        assert bool(record["cut"]) == bool(form)
        found = read_statistics(out)
        sizes[form] = found.arrays.num_bytes  # headers are longer than Grams here
        first = read_statistics(tmp_path / "x0.safetensors")
        for name in found.manifest.layers:
            np.testing.assert_allclose(
                np.diag(found.gram(name)), np.diag(first.gram(name)), rtol=1e-4
            )
    assert sizes[("--blocks", "4")] < sizes[()] and sizes[("--rank", "2")] < sizes[()]
    # Narrow ones stay whole, and layers can be chosen.
    out = tmp_path / "narrow.safetensors"
    layers = ("--layers", ".*/mlp/.*", "--blocks", "4", "--noise", "0.1")
    plain = [word for word in words if word != "--json"]
    code, said, error = run(*plain, *layers, "--out", out)
    assert code == 0, error
    assert "no Gram has more than 1024 inputs: all are whole" in said
    found = read_statistics(out)
    assert len(found.manifest.layers) == 4
    gram = found.gram("bert.encoder.layer.1.output.dense.weight")
    other = first.gram("bert.encoder.layer.1.output.dense.weight")
    assert 0 < np.abs(gram - other).max() and np.count_nonzero(gram == 0) == 0
    assert np.linalg.eigvalsh(gram).min() > -1e-4


def test_an_output_is_replaced_only_when_told(run, owners, tmp_path):
    words = ("statistics", "--kind", "fisher", "--model", "A", "--data", "dataA")
    words += ("--examples", "2", "--estimator", "empirical")
    out = tmp_path / "one.safetensors"
    code, said, error = run(*words, "--out", out)
    assert code == 0, error
    assert "41 tensors, 2 examples" in said and f"statistics: {out}" in said
    before, manifest = load_file(out), read_statistics(out).manifest
    code, _, error = run(*words, "--out", out)
    assert code == 1 and "pass --overwrite" in error
    code, _, error = run(*words, "--out", out, "--overwrite")
    assert code == 0 and read_statistics(out).manifest == manifest
    for name, values in load_file(out).items():
        np.testing.assert_array_equal(values, before[name])


WRONG = {
    "an output that is no safetensors": (
        ("--kind", "gram", "--examples", "2", "--out", "x.npz"),
        2,
        "must end with .safetensors",
    ),
    "no example": (
        ("--kind", "gram", "--examples", "0"),
        1,
        "examples: 0; at least 1",
    ),
    "two forms": (
        ("--kind", "gram", "--examples", "2", "--blocks", "4", "--rank", "2"),
        1,
        "blocks and rank",
    ),
    "noise on Fishers": (
        ("--kind", "fisher", "--examples", "2", "--noise", "1"),
        1,
        "are of kind 'gram'",
    ),
    "no such layer": (
        ("--kind", "gram", "--examples", "2", "--layers", "nothing"),
        1,
        "matches no linear layer",
    ),
    "no such estimator": (
        ("--kind", "fisher", "--examples", "2", "--estimator", "exact"),
        1,
        "'exact' is not one of true, sampled, empirical",
    ),
    "an estimator of Grams": (
        ("--kind", "gram", "--examples", "2", "--estimator", "true"),
        1,
        "estimator is of kind 'fisher'",
    ),
    "a kind that is none": (("--kind", "moments", "--examples", "2"), 2, "moments"),
}


@pytest.mark.parametrize("words, code, told", WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_is_told(run, tmp_path, words, code, told):
    given = ("--model", "A", "--data", "dataA", "--out", tmp_path / "x.safetensors")
    found, out, error = run("statistics", *given, *words)
    assert (found, out) == (code, ""), error
    assert told in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


FAULTS = {
    "no statistics": (("--method", "regmean"), 2, "regmean: needs statistics"),
    "statistics for none": (
        ("--method", "linear", *GRAMS),
        2,
        "--statistics: linear reads none; regmean, mats, fisher do",
    ),
    "a file too few": (
        ("--method", "regmean", *GRAMS[:2]),
        2,
        "--statistics: 1 files for 2 models",
    ),
    "another kind": (
        ("--method", "regmean", *FISHERS),
        1,
        "fisherA.safetensors: holds statistics of kind 'fisher', regmean reads 'gram'",
    ),
    "a weight below 0": (
        ("--method", "regmean", *GRAMS, "--weights", "-1", "2"),
        2,
        "give numbers from 0 on",
    ),
    "an alpha of 2": (
        ("--method", "regmean", *GRAMS, "--set", "alpha=2"),
        2,
        "--set alpha: 2 is not one number from 0 to 1",
    ),
    "a file that is none": (
        ("--method", "regmean", "--statistics", "gramA.safetensors", "nowhere"),
        1,
        "nowhere: no such file of statistics",
    ),
    "biases of a method without": (
        ("--method", "fisher", *FISHERS, "--set", "biases=true"),
        2,
        "--set biases: fisher has no such option",
    ),
}


@pytest.mark.parametrize("words, code, told", FAULTS.values(), ids=FAULTS.keys())
def test_a_merge_with_wrong_statistics_is_refused(run, tmp_path, words, code, told):
    found, out, error = run("merge", *MODELS, *words, "--out", tmp_path / "out")
    assert (found, out) == (code, ""), error
    assert told in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_statistics_of_an_older_model_are_refused(run, owners, tmp_path):
    shutil.copytree(owners / "B", tmp_path / "B")
    file = tmp_path / "B" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"] = tensors["classifier.bias"] + 1e-3
    save_file(tensors, file, {"format": "pt"})
    words = ("merge", "--method", "regmean", "--models", "A", tmp_path / "B", *GRAMS)
    code, _, error = run(*words, "--out", tmp_path / "out")
    assert code == 1 and "gramB.safetensors: is of other weights than B has" in error
    assert not (tmp_path / "out").exists()
