"""Merges of files with statistics against the formulas in float64."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import fusion_jax
from fusion_jax.checkpoints import staging
from fusion_jax.checkpoints.direct_plan import direct_plan
from fusion_jax.checkpoints.lazy import open_checkpoint
from fusion_jax.checkpoints.merge import merge
from fusion_jax.checkpoints.regressed import Regressed
from fusion_jax.checkpoints.run_merge import dry_run, run_merge
from fusion_jax.checkpoints.slots import slot_of
from fusion_jax.checkpoints.statistics_file import (
    Layer,
    read_statistics,
    stored_gram,
    write_statistics,
)
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.merging import regression
from tests.checkpoints.folders import digests, write_folder
from tests.checkpoints.statistics import (
    LAYERS,
    fishers_of,
    grams_of,
    manifest_of,
    outputs_of,
    tensors_of,
    write_fishers,
    write_grams,
    write_model,
)

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "model.safetensors"
ROW = np.array([0.5, 0.2, 0.3])


@pytest.fixture
def place(tmp_path):
    """Three models with Grams and Fishers."""
    for seed, name in enumerate("ABC"):
        write_model(tmp_path / name, seed)
        write_grams(tmp_path / f"gram{name}.safetensors", tmp_path / name, seed)
        write_fishers(tmp_path / f"fisher{name}.safetensors", tmp_path / name, seed)
    return tmp_path


def plan_of(place, method="regmean", names="ABC", **more):
    kind = "fisher" if method == "fisher" else "gram"
    files = [place / f"{kind}{name}.safetensors" for name in names]
    more.setdefault("weights", ROW[: len(names)])
    return direct_plan(method, [place / n for n in names], statistics=files, **more)


def merged(place, *arguments, **more):
    merge(plan_of(place, *arguments, **more), place / "out", overwrite=True)
    return load_file(place / "out" / WEIGHTS)


def kernel_of(tensors, name):
    """[in, out] float64."""
    x = tensors[name].astype(np.float64)
    return x.T if LAYERS[name].input_axis == -1 else x


def total(parts):
    return np.sum(list(parts), axis=0)


def solved(name, models, grams, row, alpha, ridge, bias=False):
    """W (or [W; b]) of (A + r I) W = sum c_k G~_k W_k + r M, by numpy."""
    row = row / row.sum()
    kernels = [kernel_of(model, name) for model in models]
    grams = [g[LAYERS[name].input].astype(np.float64) for g in grams]
    if bias:
        offsets = [m[LAYERS[name].bias].astype(np.float64) for m in models]
        kernels = [
            np.concatenate([w, b[None]]) for w, b in zip(kernels, offsets, strict=True)
        ]
    else:
        grams = [g[:-1, :-1] for g in grams]
    scaled = [alpha * g + (1 - alpha) * np.diag(np.diag(g)) for g in grams]
    matrix = total(c * g for c, g in zip(row, scaled, strict=True))
    right = total(c * g @ w for c, g, w in zip(row, scaled, kernels, strict=True))
    mean = total(c * w for c, w in zip(row, kernels, strict=True))
    r = ridge * np.trace(matrix) / len(matrix)
    found = np.linalg.solve(matrix + r * np.eye(len(matrix)), right + r * mean)
    gaps = [found - w for w in kernels]
    loss = sum(
        c * np.trace(d.T @ g @ d) for c, g, d in zip(row, scaled, gaps, strict=True)
    )
    return found, loss


@pytest.mark.parametrize("alpha, ridge", [(1.0, 0.0), (0.9, 1e-6), (0.0, 1e-2)])
def test_kernels_are_those_of_the_formula_and_the_rest_is_averaged(place, alpha, ridge):
    found = merged(place, options={"alpha": alpha, "ridge": ridge}, weights=3 * ROW)
    models = [tensors_of(seed) for seed in range(3)]
    grams = [grams_of(seed) for seed in range(3)]
    for name, values in found.items():
        mean = sum(
            c * m[name].astype(np.float64) for c, m in zip(ROW, models, strict=True)
        )
        if name in LAYERS:
            wanted, _ = solved(name, models, grams, ROW, alpha, ridge)
            np.testing.assert_allclose(
                kernel_of(found, name), wanted, rtol=1e-6, atol=1e-6
            )
            assert np.abs(values - mean).max() > 0.05  # not the plain average
        else:
            np.testing.assert_allclose(values, mean, rtol=1e-6, atol=1e-7)


def test_kernel_and_bias_of_one_solve(place):
    found = merged(place, options={"alpha": 0.8, "biases": True})
    models = [tensors_of(seed) for seed in range(3)]
    grams = [grams_of(seed) for seed in range(3)]
    for name, layer in LAYERS.items():
        wanted, _ = solved(name, models, grams, ROW, 0.8, 1e-6, bias=True)
        both = np.concatenate([kernel_of(found, name), found[str(layer.bias)][None]])
        np.testing.assert_allclose(both, wanted, rtol=1e-6, atol=1e-6)
    mean = sum(c * m["scale"] for c, m in zip(ROW, models, strict=True))
    np.testing.assert_allclose(found["scale"], mean, rtol=1e-6)


@pytest.mark.parametrize(
    "method, dtype, options",
    [
        ("regmean", np.float32, {}),
        ("regmean", ml_dtypes.bfloat16, {}),
        ("regmean", np.float16, {"biases": True}),
        ("mats", np.float32, {}),
        ("fisher", ml_dtypes.bfloat16, {}),
    ],
)
def test_equal_models_give_themselves_bit_for_bit(tmp_path, method, dtype, options):
    for seed, name in enumerate("ABC"):
        write_model(tmp_path / name, 0, dtype=dtype)
        write_grams(tmp_path / f"gram{name}.safetensors", tmp_path / name, seed)
        write_fishers(tmp_path / f"fisher{name}.safetensors", tmp_path / name, seed)
    found = merged(tmp_path, method, options=options, weights=[1, 1, 1])
    for name, values in tensors_of(0, dtype).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("normalize", ["none", "model", "tensor"])
def test_fisher_of_files_is_that_of_memory(place, normalize):
    found = merged(place, "fisher", options={"normalize": normalize})
    stack = {n: np.stack([tensors_of(k)[n] for k in range(3)]) for n in tensors_of(0)}
    fishers = {n: np.stack([fishers_of(k)[n] for k in range(3)]) for n in stack}
    wanted = fusion_jax.fisher(
        stack, jnp.asarray(ROW), statistics=fishers, normalize=normalize
    )
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)
    # And both are the formula.
    x, f = stack["scale"].astype(np.float64), fishers["scale"].astype(np.float64)
    if normalize == "model":
        norms = [
            np.sqrt(sum((fishers[n][k] ** 2).sum() for n in fishers)) for k in range(3)
        ]
        f = f / np.array(norms)[:, None]
    if normalize == "tensor":
        f = f / f.mean(axis=1, keepdims=True)
    share = ROW[:, None] * f
    np.testing.assert_allclose(
        found["scale"], (share * x).sum(0) / share.sum(0), rtol=1e-5
    )


def test_fisher_of_a_tensor_of_many_pieces(tmp_path):
    shapes, random = {"wide": (700, 800)}, np.random.default_rng(0)
    models = [random.normal(size=(700, 800)).astype(np.float32) for _ in range(2)]
    for seed, name in enumerate("AB"):
        folder = write_folder(tmp_path / name, {"wide": models[seed]})
        write_statistics(
            tmp_path / f"fisher{name}.safetensors",
            manifest_of(folder, "fisher"),
            fishers_of(seed, shapes),
        )
    found = merged(tmp_path, "fisher", "AB", weights=[1, 3])["wide"]
    f = [fishers_of(seed, shapes)["wide"].astype(np.float64) for seed in range(2)]
    least = 1e-6 * np.mean(f)
    a, b = np.maximum(f[0], least), 3 * np.maximum(f[1], least)
    wanted = (a * models[0] + b * models[1]) / (a + b)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("start", ["average", "task_arithmetic"])
def test_mats_of_files_is_that_of_memory(place, start):
    write_model(place / "origin", 9)
    base = {"base": place / "origin"} if start == "task_arithmetic" else {}
    options = {"start": start, "alpha": 0.9, "iterations": 40}
    found = merged(place, "mats", options=options, **base)
    stack, inputs, outputs, origin = {}, {}, {}, {}
    for name, layer in LAYERS.items():
        stack[name] = np.stack([kernel_of(tensors_of(k), name) for k in range(3)])
        inputs[name] = np.stack([grams_of(k)[layer.input] for k in range(3)])
        outputs[name] = np.stack([outputs_of(k)[name] for k in range(3)])
        origin[name] = kernel_of(tensors_of(9), name).astype(np.float32)
    wanted = fusion_jax.mats(
        {n: jnp.asarray(x, jnp.float32) for n, x in stack.items()},
        jnp.asarray(ROW),
        statistics={"inputs": inputs, "outputs": outputs},
        base=origin if base else None,
        **options,
    )
    for name in LAYERS:
        np.testing.assert_allclose(
            kernel_of(found, name), wanted[name], rtol=1e-3, atol=1e-3
        )
        mean = np.einsum("k,kio->io", ROW, stack[name])
        assert np.abs(kernel_of(found, name) - mean).max() > 0.05
    np.testing.assert_allclose(
        found["scale"], sum(c * tensors_of(k)["scale"] for k, c in enumerate(ROW)), 1e-6
    )


def test_a_start_from_task_vectors_needs_a_base(place):
    with pytest.raises(ValueError, match="start=task_arithmetic needs --base"):
        plan_of(place, "mats", options={"start": "task_arithmetic"})


WIDE = 160


def write_wide(place, count):
    """`count` models of one wide layer, with Grams."""
    random = np.random.default_rng(0)
    for k in range(count):
        kernel = random.normal(size=(WIDE, WIDE)).astype(np.float32)
        folder = write_folder(place / f"m{k}", {"a.weight": kernel})
        x = random.normal(size=(2 * WIDE, WIDE + 1))
        gram = (x.T @ x).astype(np.float32)
        manifest = manifest_of(
            folder, layers={"a.weight": Layer("x", None, -1)}, counts={"x": 9.0}
        )
        write_statistics(place / f"g{k}.safetensors", manifest, stored_gram("x", gram))


def test_memory_and_sums_do_not_grow_with_the_number_of_models(tmp_path, monkeypatch):
    write_wide(tmp_path, 8)
    made = []
    first = regression.LayerSums.__init__

    def counted(self, *arguments, **more):
        first(self, *arguments, **more)
        made.append(self.nbytes)

    monkeypatch.setattr(regression.LayerSums, "__init__", counted)
    peaks = {}
    for count in (2, 2, 8):  # the first warms up what is imported late
        plan = direct_plan(
            "regmean",
            [tmp_path / f"m{k}" for k in range(count)],
            statistics=[tmp_path / f"g{k}.safetensors" for k in range(count)],
        )
        models = {label: open_checkpoint(path) for label, path in plan.models.items()}
        statistics = {n: read_statistics(f) for n, f in plan.statistics.items()}
        slots = [slot_of(tensor, plan, models, {}) for tensor in plan.tensors]
        one = Regressed(plan, models, statistics, slots, lambda name, entry: None)
        made.clear()
        tracemalloc.start()
        for _, pieces in one.pieces(plan.tensors[0], set()):
            list(pieces)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(made) == 1 and made[0] == 2 * 8 * WIDE * WIDE
    assert peaks[8] < 1.02 * peaks[2]
    assert peaks[8] < 1.1 * dry_run(plan).record["memory_bytes"]


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    "count, biases", [(1, False), (5, False), (2, True), (3, True), (4, True)]
)
def test_a_stopped_merge_goes_on_and_keeps_its_report(
    place, monkeypatch, count, biases
):
    monkeypatch.setattr(staging, "_SYNC_BYTES", 0)
    plan = plan_of(place, options={"biases": biases})
    written = []

    def stop(name, num_bytes):
        written.append(name)
        if len(written) == count:
            raise Stopped

    with pytest.raises(Stopped):
        merge(plan, place / "out", progress=stop)
    done = merge(plan, place / "out")
    whole = merge(plan, place / "whole")
    assert done.resumed == count
    assert digests(place / "out") == digests(place / "whole")
    assert done.report == whole.report
    assert sum("solver" in entry for entry in done.report.values()) == 2 + 2 * biases


def test_changed_statistics_are_another_merge(place, monkeypatch):
    monkeypatch.setattr(staging, "_SYNC_BYTES", 0)

    def stop(name, num_bytes):
        raise Stopped

    with pytest.raises(Stopped):
        merge(plan_of(place), place / "out", progress=stop)
    write_grams(place / "gramB.safetensors", place / "B", 17)
    assert merge(plan_of(place), place / "out").resumed == 0


def test_the_report_says_how_each_tensor_came_about(place):
    plan = plan_of(place)
    done = run_merge(plan, place / "out")
    record = json.loads((place / "out" / "merge_report.json").read_text())
    assert record["methods"] == ["regmean", "weighted_average"]
    assert record["counts"] == {"averaged": 4, "regressed (cholesky)": 2}
    assert record["tensors"] == done.report
    models = [tensors_of(seed) for seed in range(3)]
    grams = [grams_of(seed) for seed in range(3)]
    for name in LAYERS:
        entry = record["tensors"][name]
        assert entry["solver"] == "cholesky" and entry["dead_inputs"] == 0
        assert entry["tokens"] == {"A": 50, "B": 50, "C": 50}
        _, loss = solved(name, models, grams, ROW, 0.9, 1e-6)
        assert entry["loss"] == pytest.approx(loss, rel=1e-4)
        assert 1 < entry["condition"] < 1e6
    assert record["tensors"]["scale"] == {"how": "averaged"}
    card = (place / "out" / "README.md").read_text()
    condition = record["tensors"]["up.weight"]["condition"]
    assert f"| up.weight | regressed (cholesky, condition {condition:.0e}) |" in card
    assert "| up.bias | averaged |" in card
    assert "A: gram of 20 examples of opinion (train)" in card
    kept = json.loads((place / "out" / "merge.json").read_text())
    assert kept["statistics"]["B"]["name"] == "gramB.safetensors"
    assert kept["tensors"]["up.weight"]["method"] == "regmean"
    assert kept["tensors"]["up.bias"]["method"] == "weighted_average"
    for file in ("README.md", "merge.json", "merge_report.json"):
        assert str(place) not in (place / "out" / file).read_text()
    assert not (place / "out" / "solved.txt").exists()


def test_a_singular_system_is_solved_by_conjugate_gradients_and_said(place):
    # Two inputs that are always equal, and one that is never active.
    for seed, name in enumerate("ABC"):
        x = np.random.default_rng(seed).normal(size=(40, 5))
        x[:, 1], x[:, 4] = x[:, 0], 0
        x = np.concatenate([x, np.ones((40, 1))], axis=1)
        arrays = stored_gram("in", (x.T @ x / 40).astype(np.float32))
        write_grams(
            place / f"gram{name}.safetensors", place / name, seed, arrays=arrays
        )
    plan = plan_of(place, options={"alpha": 1.0, "ridge": 0.0})
    done = run_merge(plan, place / "out")
    entry = done.report["up.weight"]
    assert entry["solver"] == "conjugate gradient" and entry["dead_inputs"] == 1
    found = load_file(place / "out" / WEIGHTS)["up.weight"]
    mean = total(c * tensors_of(k)["up.weight"] for k, c in enumerate(ROW))
    np.testing.assert_allclose(found[:, 4], mean[:, 4], rtol=1e-6)
    record = json.loads((place / "out" / "merge_report.json").read_text())
    assert record["tensors"]["up.weight"]["condition"] is None
    card = (place / "out" / "README.md").read_text()
    assert "| up.weight | regressed (conjugate gradient) |" in card


def test_a_head_that_is_the_embedding_stays_averaged(tmp_path):
    layers = {**LAYERS, "wte.weight": Layer("in", None, -1)}
    for seed, name in enumerate("AB"):
        tensors = tensors_of(seed)
        tensors["wte.weight"] = tensors.pop("embed.weight")
        config = {"architectures": ["GPT2LMHeadModel"]}
        folder = write_folder(tmp_path / name, tensors, config=config)
        write_grams(tmp_path / f"gram{name}.safetensors", folder, seed, layers=layers)
    plan = plan_of(tmp_path, names="AB", weights=[1, 1])
    assert any(
        note == "wte.weight: is embedding and head in one; averaged"
        for note in plan.notes
    )
    done = run_merge(plan, tmp_path / "out")
    assert done.report["wte.weight"] == {"how": "averaged"}
    assert done.report["up.weight"]["how"] == "regressed"


def test_a_kernel_that_is_not_finite_is_named(place):
    tensors = tensors_of(1)
    tensors["up.weight"][2, 3] = np.nan
    write_folder(place / "bad", tensors)
    write_grams(place / "grambad.safetensors", place / "bad", 1)
    files = [place / "gramA.safetensors", place / "grambad.safetensors"]
    plan = direct_plan("regmean", [place / "A", place / "bad"], statistics=files)
    with pytest.raises(CheckpointError, match=r"up\.weight"):
        merge(plan, place / "out")
    with pytest.raises(CheckpointError, match=r"up\.weight: .*not finite"):
        merge(plan, place / "out", allow_nonfinite=True)
    assert not (place / "out").exists() and not (place / ".out.merging").exists()


def test_another_dtype_of_the_output(place):
    found = merged(place, dtype="bfloat16")
    exact = merged(place)
    for name, values in found.items():
        assert values.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(values, exact[name].astype(ml_dtypes.bfloat16))


def test_a_merge_loads_no_tokeniser(place):
    files = [str(place / f"gram{name}.safetensors") for name in "AB"]
    code = (
        "import sys\nfrom fusion_jax.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'transformers', 'torch', 'flax', 'optax'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    words = ["merge", "--method", "regmean", "--statistics", *files]
    words += ["--models", str(place / "A"), str(place / "B"), "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "4 averaged, 2 regressed (cholesky)" in done.stdout
