"""Fuses by the library's merges against the same merges in memory."""

from dataclasses import replace

import numpy as np
import pytest

from fusion_jax import MERGES, stack
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration.fusing import FuseOptions
from fusion_jax.collaboration.weights_file import open_weights
from tests.checkpoints.statistics import (
    fishers_of,
    grams_of,
    tensors_of,
    write_fishers,
    write_grams,
    write_model,
)
from tests.collaboration.bodies import member, save, tuned
from tests.collaboration.fuses import fused, round_of, wide


def stacked(tensors):
    trees_ = [{n: x for n, x in one.items() if x.dtype.kind != "i"} for one in tensors]
    return stack(trees_)


ROBUST = ["coordinate_median", "trimmed_mean", "norm_clipped_mean", "geometric_median"]


@pytest.mark.parametrize("method", [*ROBUST, "krum", "task_arithmetic", "ties"])
def test_other_methods_equal_the_merge_in_memory(tmp_path, method):
    base, start, files, tensors = round_of(tmp_path, 6)
    members = sorted((member(x) for x in files), key=lambda m: m.sha256)
    order = [files.index(one.file) for one in members]
    found, made = fused(base, members, FuseOptions(method), tmp_path)
    record = MERGES[method]
    mean = "base" not in record.needs or method == "norm_clipped_mean"
    row = np.full(6, 1 / 6 if mean else 1.0, np.float32)
    floats = {n: x for n, x in start.items() if x.dtype.kind != "i"}
    wanted = record.function(stacked([tensors[k] for k in order]), row, base=floats)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(
        found["embeddings.position_ids"], start["embeddings.position_ids"]
    )
    assert made.notes == ()
    assert list(open_weights(tmp_path / "out.safetensors").tensors) == list(
        open_weights(base).tensors
    )


def test_a_method_takes_the_servers_rate_and_momentum_as_the_mean_does(tmp_path):
    base, start, files, tensors = round_of(tmp_path, 5)
    members = [member(x) for x in files]
    options = FuseOptions("coordinate_median", server_rate=0.5)
    found, _ = fused(base, members, options, tmp_path)
    for name, values in wide(start).items():
        median = np.median([x[name] for x in tensors], axis=0)
        wanted = values + 0.5 * (median - values)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=1e-7)


def test_a_late_contribution_is_moved_before_another_method_sees_it(tmp_path):
    base, start, files, tensors = round_of(tmp_path, 4)
    old = tuned(start, 70, 0.5)
    late = tuned(old, 71)
    own = save(tmp_path / "old.safetensors", old)
    file = save(tmp_path / "late.safetensors", late)
    members = [*(member(x) for x in files), member(file, age=2, own_base=own)]
    found, made = fused(base, members, FuseOptions("coordinate_median"), tmp_path)
    moved = {n: x + wide(late)[n] - wide(old)[n] for n, x in wide(start).items()}
    for name, values in moved.items():
        median = np.median([*(x[name] for x in tensors), values], axis=0)
        np.testing.assert_allclose(found[name], median, rtol=1e-6, atol=1e-7)
    assert made.notes == (
        "coordinate_median: reads no weights; 1 late contributions count as much as "
        "the others",
    )
    found, made = fused(base, members, FuseOptions("linear"), tmp_path)
    for name, values in moved.items():
        total = sum(x[name].astype(np.float64) for x in tensors) + values / 1.5
        np.testing.assert_allclose(
            found[name], total / (4 + 1 / 1.5), rtol=1e-6, atol=1e-7
        )
    found, _ = fused(base, members[-1:], FuseOptions("weighted_average"), tmp_path)
    for name, values in moved.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
    found, _ = fused(base, members[-1:], FuseOptions("task_arithmetic"), tmp_path)
    for name, values in wide(start).items():
        way = (moved[name] - values) / 1.5
        np.testing.assert_allclose(found[name], values + way, rtol=1e-5, atol=1e-6)


@pytest.fixture
def measured(tmp_path):
    """Three models with files of statistics: (base file, members by kind)."""
    base = write_model(tmp_path / "base", 9) / "model.safetensors"
    members = {"gram": [], "fisher": []}
    for seed, name in enumerate("ABC"):
        folder = write_model(tmp_path / name, seed)
        write = {"gram": write_grams, "fisher": write_fishers}
        for kind, found in members.items():
            file = write[kind](tmp_path / f"{kind}{name}.safetensors", folder, seed)
            found.append(member(folder / "model.safetensors", statistics=file))
    return base, members


@pytest.mark.parametrize("method", ["regmean", "fisher", "mats"])
def test_methods_with_statistics_equal_the_merge_in_memory(tmp_path, measured, method):
    base, members = measured
    kind = "fisher" if method == "fisher" else "gram"
    found, made = fused(base, members[kind], FuseOptions(method), tmp_path)
    models = [tensors_of(seed) for seed in range(3)]
    if method == "fisher":
        statistics = {
            n: np.stack([fishers_of(seed)[n] for seed in range(3)]) for n in models[0]
        }
        wanted = MERGES["fisher"].function(
            stack(models), np.full(3, 1 / 3, np.float32), statistics=statistics
        )
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=2e-6)
        return
    # Kernels against the formula (regmean) or away from the mean (mats).
    mean = {n: np.mean([m[n] for m in models], axis=0) for n in models[0]}
    for name in ("embed.weight", "scale"):
        np.testing.assert_allclose(found[name], mean[name], rtol=1e-5, atol=1e-6)
    if method == "regmean":
        grams = [grams_of(seed)["in"].astype(np.float64) for seed in range(3)]
        # alpha 1 and no ridge: the closed form of RegMean.
        options = FuseOptions(method, options={"alpha": 1.0, "ridge": 0.0})
        found, _ = fused(base, members[kind], options, tmp_path)
        inner = [g[:-1, :-1] for g in grams]
        right = sum(
            g @ m["up.weight"].T.astype(np.float64)
            for g, m in zip(inner, models, strict=True)
        )
        solved = np.linalg.solve(sum(inner), right).T
        np.testing.assert_allclose(found["up.weight"], solved, rtol=1e-5, atol=1e-6)
    assert np.abs(found["up.weight"] - mean["up.weight"]).max() > 0.05
    assert "tensors by statistics" in " ".join(made.notes)


def test_statistics_follow_a_late_contribution_that_is_moved(tmp_path, measured):
    base, members = measured
    _, plain = fused(base, members["gram"], FuseOptions("regmean"), tmp_path)
    # Late on a base that is the current one: moved by nothing, and so the same.
    late = [replace(m, age=1, own_base=base) for m in members["gram"]]
    options = FuseOptions("regmean", discount=0.0)
    found, _ = fused(base, late, options, tmp_path)
    fresh, _ = fused(base, members["gram"], options, tmp_path)
    for name, values in fresh.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)
    other = [replace(late[0], statistics=late[1].statistics), *late[1:]]
    with pytest.raises(CheckpointError, match="is of other weights than"):
        fused(base, other, options, tmp_path)
    with pytest.raises(ValueError, match="came without statistics"):
        fused(base, [replace(late[0], statistics=None)], options, tmp_path)
    assert plain.sha256
