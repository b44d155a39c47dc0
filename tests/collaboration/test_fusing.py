"""The fuse against the algebra of ColD Fusion, and against float64 by numpy."""

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fusion_jax import MERGES, stack
from fusion_jax.checkpoints.tensors import CheckpointError, write_file
from fusion_jax.collaboration.contributions import opened
from fusion_jax.collaboration.fuse_options import check
from fusion_jax.collaboration.fusing import FuseOptions, Member, fuse
from fusion_jax.collaboration.mean import mean_delta
from fusion_jax.collaboration.weights_file import (
    file_sha256,
    open_weights,
    pieces,
    rounded,
)
from tests.checkpoints.statistics import (
    fishers_of,
    grams_of,
    tensors_of,
    write_fishers,
    write_grams,
    write_model,
)
from tests.collaboration.bodies import base_tensors, member, save, scaled, tuned

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.float64]
MEAN = FuseOptions()


def round_of(folder, count=3, dtype=np.float32):
    """A base and contributions of it: (base file, its tensors, files, theirs)."""
    base = base_tensors(0, dtype)
    tensors = [tuned(base, seed) for seed in range(count)]
    files = [save(folder / f"c{k}.safetensors", x) for k, x in enumerate(tensors)]
    return save(folder / "base.safetensors", base), base, files, tensors


def fused(base, members, options, folder, **more):
    out = folder / "out.safetensors"
    made = fuse(base, members, options, out, **more)
    return load_file(out), made


def wide(tensors):
    return {n: x.astype(np.float64) for n, x in tensors.items() if x.dtype.kind != "i"}


def equal_bits(a, b):
    assert list(a) == list(b) or set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(
            a[name].reshape(-1).view(np.uint8), b[name].reshape(-1).view(np.uint8), name
        )


# The algebra.


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_contributor_gives_that_contributor(tmp_path, dtype):
    base, _, files, tensors = round_of(tmp_path, 1, dtype)
    found, made = fused(base, [member(files[0])], MEAN, tmp_path)
    equal_bits(found, tensors[0])
    assert made.sha256 == file_sha256(files[0])
    assert made.weights == {file_sha256(files[0]): 1.0}


# Sums of float64 weights are no longer exact in float64.
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("count", [2, 5, 35])
def test_copies_of_the_base_give_the_base_bit_for_bit(tmp_path, dtype, count):
    base, tensors, _, _ = round_of(tmp_path, 0, dtype)
    found, made = fused(base, [member(base)] * count, MEAN, tmp_path)
    equal_bits(found, tensors)
    assert made.sha256 == file_sha256(base)
    assert made.weights[file_sha256(base)] == pytest.approx(1)


def test_negative_zero_stays(tmp_path):
    tensors = {"w": np.array([-0.0, 0.0, 1.0], np.float32)}
    base = save(tmp_path / "base.safetensors", tensors)
    found, _ = fused(base, [member(base)] * 3, MEAN, tmp_path)
    equal_bits(found, tensors)


def test_the_order_of_the_listing_does_not_matter(tmp_path):
    base, _, files, _ = round_of(tmp_path, 8)
    options = [
        MEAN,
        FuseOptions(server_rate=0.7, clip=1),
        FuseOptions("geometric_median"),
        FuseOptions("dare", options={"density": 0.5}),
    ]
    for option in options:
        _, one = fused(base, [member(x) for x in files], option, tmp_path)
        _, two = fused(base, [member(x) for x in files[::-1]], option, tmp_path)
        assert one.sha256 == two.sha256
        assert one.weights == two.weights


def mean_of(tensors):
    total = sum(x.astype(np.float64) for x in tensors)
    return total / len(tensors)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    count=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_the_mean_is_the_float64_mean_rounded_once(
    tmp_path_factory, shape, count, dtype, seed
):
    folder = tmp_path_factory.mktemp("mean")
    random = np.random.default_rng(seed)
    held = [
        {"w": np.asarray(random.normal(size=shape)).astype(dtype), "n": np.arange(2)}
        for _ in range(count)
    ]
    files = [save(folder / f"{k}.safetensors", x) for k, x in enumerate(held)]
    found, _ = fused(files[0], [member(x) for x in files], MEAN, folder)
    order = sorted(range(count), key=lambda k: file_sha256(files[k]))
    wanted = rounded(mean_of([held[k]["w"] for k in order]), np.dtype(dtype))
    equal_bits(found, {"w": wanted.reshape(shape), "n": np.arange(2)})


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_form_of_deltas_agrees_with_the_mean_within_one_place(tmp_path, dtype):
    base, _, files, _ = round_of(tmp_path, 6, dtype)
    found, _ = fused(base, [member(x) for x in files], MEAN, tmp_path)
    current = open_weights(base)
    contributions = opened(current, [member(x) for x in files], 0.25)
    for name, info in current.tensors.items():
        if not info.floating:
            continue
        for piece in pieces(info.size):
            way = mean_delta(contributions, name, piece)
            values = rounded(current.wide(name, piece) + way, info.dtype)
            plain = found[name].reshape(-1)[piece]
            apart = np.abs(values.astype(np.float64) - plain.astype(np.float64))
            place = np.spacing(np.abs(plain)).astype(np.float64)
            assert (apart <= place).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_server_rate_goes_that_share_of_the_way(tmp_path, dtype):
    base, start, files, tensors = round_of(tmp_path, 4, dtype)
    options = FuseOptions(server_rate=0.3)
    found, _ = fused(base, [member(x) for x in files], options, tmp_path)
    for name, values in wide(start).items():
        wanted = 0.7 * values + 0.3 * mean_of([x[name] for x in tensors])
        np.testing.assert_array_equal(found[name], rounded(wanted, np.dtype(dtype)))


def test_rounding_to_bfloat16_is_to_the_nearest_of_all_of_them():
    near = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, 1 + 2**-8, 3e38, -np.inf])
    found = rounded(near, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)
    np.testing.assert_array_equal(found[:3], [1 + 2**-7, 1, 1])
    assert found[4] == -np.inf
    values = np.random.default_rng(0).normal(size=5000)
    found = rounded(values, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)
    all_of_them = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):  # NaN among them
        grid = np.unique(all_of_them[np.isfinite(all_of_them)].astype(np.float64))
    above = np.searchsorted(grid, values)
    beside = np.stack([grid[above - 1], grid[above]])
    nearest = np.abs(beside - values).min(axis=0)
    np.testing.assert_array_equal(np.abs(found - values), nearest)


# Late and clipped contributions.


def test_late_contributions_are_discounted_ways_from_their_own_bases(tmp_path):
    base, now, files, tensors = round_of(tmp_path, 2)
    old = [tuned(now, 50, 0.2), tuned(now, 51, 0.3)]
    late = [tuned(old[0], 60), tuned(old[1], 61)]
    members = [member(files[0]), member(files[1])]
    for k, age in enumerate((1, 3)):
        file = save(tmp_path / f"late{k}.safetensors", late[k])
        own = save(tmp_path / f"old{k}.safetensors", old[k])
        members.append(member(file, age=age, own_base=own))
    options = FuseOptions(discount=0.5, server_rate=0.9)
    found, made = fused(base, members, options, tmp_path)
    votes = np.array([1, 1, 1 / 1.5, 1 / 2.5])
    for name, values in wide(now).items():
        ways = [x[name].astype(np.float64) - values for x in tensors]
        ways += [
            a[name].astype(np.float64) - b[name].astype(np.float64)
            for a, b in zip(late, old, strict=True)
        ]
        step = np.tensordot(votes / votes.sum(), np.array(ways), 1)
        np.testing.assert_allclose(found[name], values + 0.9 * step, rtol=1e-7)
    for one, vote in zip(members, votes, strict=True):
        assert made.weights[one.sha256] == pytest.approx(vote / votes.sum())
    assert sum(made.weights.values()) == pytest.approx(1)


def test_clipping_shortens_the_long_and_leaves_the_others(tmp_path):
    base, start, files, tensors = round_of(tmp_path, 5)
    tensors[2] = scaled(start, tensors[2], 100)
    save(files[2], tensors[2])
    members = [member(x) for x in files]
    ways = [{n: x - wide(start)[n] for n, x in wide(one).items()} for one in tensors]
    norms = [np.sqrt(sum((x**2).sum() for x in way.values())) for way in ways]
    limit = 1.5 * np.median(norms)
    found, made = fused(base, members, FuseOptions(clip=1.5), tmp_path)
    for name, values in wide(start).items():
        step = sum(
            way[name] * min(1, limit / norm)
            for way, norm in zip(ways, norms, strict=True)
        )
        np.testing.assert_allclose(found[name], values + step / 5, rtol=1e-6, atol=1e-8)
    assert made.clipped == {members[2].sha256: pytest.approx(limit / norms[2])}
    # Where nobody is long, nothing changes, not a bit.
    _, with_clip = fused(base, members[:2], FuseOptions(clip=5), tmp_path)
    _, without = fused(base, members[:2], MEAN, tmp_path)
    assert with_clip.sha256 == without.sha256


def test_an_attacker_of_a_hundred_times_ruins_the_mean_but_not_with_clipping(tmp_path):
    base, start, files, tensors = round_of(tmp_path, 5)
    honest = {n: mean_of([x[n] for x in tensors[1:]]) for n in wide(start)}
    save(files[0], scaled(start, tensors[0], 100))
    members = [member(x) for x in files]

    def away(options):
        found, _ = fused(base, members, options, tmp_path)
        return np.sqrt(sum(((found[n] - x) ** 2).sum() for n, x in honest.items()))

    one_way = np.sqrt(
        sum(((tensors[1][n] - x) ** 2).sum() for n, x in wide(start).items())
    )
    assert away(MEAN) > 10 * one_way
    assert away(FuseOptions(clip=1)) < one_way
    assert away(FuseOptions("coordinate_median")) < one_way


# Server optimizers, over rounds.


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_server_optimizers_follow_the_papers_over_rounds(tmp_path, optimizer):
    values = {"momentum": {"momentum": 0.8}, "adam": {"beta1": 0.7, "tau": 1e-2}}
    options = FuseOptions(
        server_rate=0.05, optimizer=optimizer, optimizer_options=values[optimizer]
    )
    current = base_tensors(0)
    reference = wide(current)
    m = {n: np.zeros_like(x) for n, x in reference.items()}
    v = {n: np.full_like(x, 1e-4) for n, x in reference.items()}
    state = None
    for round_ in range(4):
        base = save(tmp_path / f"base{round_}.safetensors", current)
        tensors = [tuned(current, 10 * round_ + k) for k in range(3)]
        files = [
            save(tmp_path / f"{round_}_{k}.safetensors", x)
            for k, x in enumerate(tensors)
        ]
        after = tmp_path / f"state{round_ + 1}.safetensors"
        found, _ = fused(
            base,
            [member(x) for x in files],
            options,
            tmp_path,
            state=state,
            state_out=after,
        )
        for name in reference:
            delta = mean_of([x[name] for x in tensors]) - current[name].astype(float)
            if optimizer == "momentum":
                m[name] = 0.8 * m[name] + delta
                reference[name] += 0.05 * m[name]
            else:
                m[name] = 0.7 * m[name] + 0.3 * delta
                v[name] = 0.99 * v[name] + 0.01 * delta**2
                reference[name] += 0.05 * m[name] / (np.sqrt(v[name]) + 1e-2)
            # What a round has done, of which the weights are only the sum.
            np.testing.assert_allclose(
                found[name], reference[name], rtol=2e-6, atol=1e-7
            )
        current, state = found, after
    held = load_file(state)
    assert held["step"].tolist() == [4]
    first = "momentum" if optimizer == "momentum" else "first"
    for name in reference:
        np.testing.assert_allclose(
            held[f"{first}/{name}"], m[name], rtol=2e-5, atol=2e-7
        )


def test_momentum_of_zero_is_the_plain_rate(tmp_path):
    base, _, files, _ = round_of(tmp_path, 3)
    members = [member(x) for x in files]
    options = FuseOptions(
        server_rate=0.5, optimizer="momentum", optimizer_options={"momentum": 0.0}
    )
    found, _ = fused(
        base, members, options, tmp_path, state_out=tmp_path / "state.safetensors"
    )
    plain, _ = fused(base, members, FuseOptions(server_rate=0.5), tmp_path)
    for name, values in wide(plain).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-7)


def test_a_state_of_another_optimizer_is_refused(tmp_path):
    base, _, files, _ = round_of(tmp_path, 2)
    members, state = [member(x) for x in files], tmp_path / "state.safetensors"
    fused(base, members, FuseOptions(optimizer="momentum"), tmp_path, state_out=state)
    adam = FuseOptions(optimizer="adam", server_rate=1e-3)
    with pytest.raises(CheckpointError, match="momentum, step and is no state of adam"):
        fused(base, members, adam, tmp_path, state=state, state_out=tmp_path / "s2")
    with pytest.raises(ValueError, match="has a state; say where"):
        fused(base, members, adam, tmp_path)
    assert not (tmp_path / "s2").exists()


# Merges of the library.


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


# What is refused.


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"method": "krun"}, "unknown method 'krun'; did you mean krum"),
        ({"method": "mean", "options": {"trim": 0.1}}, "trim: mean has no options"),
        (
            {"method": "trimmed_mean", "options": {"trimm": 0.1}},
            "trimm: trimmed_mean has no such option; did you mean trim",
        ),
        ({"optimizer": "adm"}, "unknown optimizer 'adm'; did you mean adam"),
        (
            {"optimizer": "adam", "optimizer_options": {"beta": 0.9}},
            "adam has no option 'beta'; did you mean beta",
        ),
        (
            {"optimizer": "adam", "optimizer_options": {"tau": 0}},
            "tau: 0 is no number greater than 0",
        ),
        ({"server_rate": 0}, "server_rate: 0 is no finite number greater than 0"),
        ({"clip": -1, "discount": float("nan")}, "discount: nan.*; clip: -1"),
        ({"method": "wise_ft"}, "the mean with a server_rate"),
    ],
)
def test_options_are_refused_with_the_nearest_that_there_are(options, fault):
    with pytest.raises(ValueError, match=fault):
        check(FuseOptions(**options))


def test_options_that_all_methods_have_pass():
    for method in [*MERGES, "linear", "mean"]:
        if method != "wise_ft":
            check(FuseOptions(method))


def test_contributions_unlike_the_base_are_refused_all_at_once(tmp_path):
    base, start, files, tensors = round_of(tmp_path, 3)
    save(files[0], {**tensors[0], "classifier.weight": np.zeros((2, 8), np.float32)})
    save(files[1], {**tensors[1], "norm.weight": np.zeros(9, np.float32)})
    ids = {"embeddings.position_ids": start["embeddings.position_ids"] + 1}
    save(files[2], {**tensors[2], **ids})
    with pytest.raises(CheckpointError) as caught:
        fused(base, [member(x) for x in files], MEAN, tmp_path)
    said = str(caught.value)
    assert "3 differences" in said
    assert "classifier.weight is not in the base" in said
    assert "norm.weight is F32 (9,), in the base F32 (8,)" in said
    assert "position_ids: integers that are not the base's" in said
    assert not (tmp_path / "out.safetensors").exists()


def test_nothing_is_written_where_the_result_is_not_finite(tmp_path):
    base, _, files, tensors = round_of(tmp_path, 3)
    tensors[1]["norm.weight"][3] = np.nan
    save(files[1], tensors[1])
    members, state = [member(x) for x in files], tmp_path / "state.safetensors"
    for options in (MEAN, FuseOptions(optimizer="momentum"), FuseOptions("ties")):
        with pytest.raises(CheckpointError, match=r"norm\.weight"):
            fused(base, members, options, tmp_path, state_out=state)
    held = sorted(x.name for x in tmp_path.iterdir())
    assert held == ["base.safetensors", *(f"c{k}.safetensors" for k in range(3))]


def test_a_fuse_of_nobody_or_of_a_late_one_without_its_base_is_refused(tmp_path):
    base, _, files, _ = round_of(tmp_path, 1)
    with pytest.raises(ValueError, match="no contribution"):
        fused(base, [], MEAN, tmp_path)
    with pytest.raises(ValueError, match="1 rounds old"):
        fused(base, [Member("0", files[0], age=1)], MEAN, tmp_path)
    with pytest.raises(ValueError, match="krum"):
        fused(base, [member(files[0])], FuseOptions("krum"), tmp_path)


# Memory and layout.


def test_the_layout_is_that_of_the_safetensors_library(tmp_path):
    tensors = {
        "b.é": np.zeros(2, np.float16),
        "a": np.ones((2, 3), np.float32),
        "n": np.zeros((), np.int64),
        "none": np.zeros((0, 3), np.float32),
    }
    file = tmp_path / "base.safetensors"
    write_file(file, tensors)
    _, made = fused(file, [member(file)], MEAN, tmp_path)
    assert (tmp_path / "out.safetensors").read_bytes() == file.read_bytes()
    assert made.bytes == file.stat().st_size


@pytest.mark.parametrize("options", [MEAN, FuseOptions(clip=1.0, server_rate=0.5)])
def test_memory_does_not_grow_with_the_number_of_contributors(
    tmp_path, options, monkeypatch
):
    from fusion_jax.collaboration import weights_file

    monkeypatch.setattr(weights_file, "SPAN", 2**14)
    tensors = {"w": np.ones((2**10, 2**9), np.float32)}
    base = save(tmp_path / "base.safetensors", tensors)
    random = np.random.default_rng(0)
    files = []
    for k in range(32):
        w = tensors["w"] + 0.01 * random.normal(size=tensors["w"].shape)
        files.append(save(tmp_path / f"{k}.safetensors", {"w": w.astype(np.float32)}))
    peaks = {}
    for count in (2, 32):
        members = [member(x) for x in files[:count]]
        tracemalloc.start()
        fuse(base, members, options, tmp_path / "out.safetensors")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[32] < peaks[2] + 2**17, peaks  # headers and shares, no piece more
    assert peaks[32] < 2**21, peaks  # of files with 2 MiB each


RESIDENT = """
import sys
from pathlib import Path
from fusion_jax.collaboration.fusing import FuseOptions, Member, fuse
files = [Path(x) for x in sys.argv[3:]]
members = [Member(x.name, x) for x in files]
def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = peak()
fuse(Path(sys.argv[1]), members, FuseOptions(), Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_itself_holds_no_more_with_32_contributors(tmp_path):
    tensors = {"w": np.ones((2**11, 2**11), np.float32)}  # 16 MiB
    base = save(tmp_path / "base.safetensors", tensors)
    files = []
    for k in range(32):
        tensors["w"][k] += 1
        files.append(str(save(tmp_path / f"{k}.safetensors", tensors)))
    grown = []
    for count in (2, 32):
        out = str(tmp_path / f"out{count}")
        done = subprocess.run(
            [sys.executable, "-c", RESIDENT, str(base), out, *files[:count]],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        grown.append(int(done.stdout))
    assert grown[1] < grown[0] + 2**22, grown
    assert grown[1] < 2**26, grown
