"""What a screen says of honest, broken and hostile contributions: real files."""

import json
import tracemalloc
from dataclasses import asdict, replace

import ml_dtypes
import numpy as np
import pytest

from fusion_jax.checkpoints.manifests import BaseReference
from fusion_jax.collaboration import weights_file
from fusion_jax.collaboration.screening import Limits, screen
from fusion_jax.collaboration.verdicts import CHECKS, Verdict
from tests.collaboration.bodies import (
    base_manifest,
    base_tensors,
    candidate,
    save,
    scaled,
    tuned,
)
from tests.collaboration.places import LIMITS, Place, failed


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_honest_contributions_pass_every_check(tmp_path, dtype):
    found = Place(tmp_path, dtype).screen(probe=lambda file: 0.5)
    assert len(found) == 7
    for verdict in found.values():
        assert verdict.accepted and not verdict.reasons
        assert list(verdict.checks) == list(CHECKS)
        others = {k: x for k, x in verdict.checks.items() if k != "statistics"}
        assert set(others.values()) == {"passed"}
        assert verdict.checks["statistics"] == "not run: it came without any"
        assert 0.015 < verdict.numbers["relative_norm"] < 0.06
        assert verdict.numbers["robust_z"] < 6
    json.dumps([asdict(x) for x in found.values()], allow_nan=False)


def test_verdicts_are_the_same_in_any_order_and_again(place):
    double = replace(place.honest[3], name="double", manifest_sha256="." * 64)
    one = place.screen(double)
    place.honest.reverse()
    two = place.screen(double)
    assert list(one) == list(two) == sorted(one)
    for name, verdict in one.items():
        numbers = dict(verdict.numbers, seconds=0)
        assert replace(verdict, numbers=numbers) == replace(
            two[name], numbers=dict(two[name].numbers, seconds=0)
        )


def test_relative_norm_is_that_of_numpy(place):
    found = place.screen()["honest6"].numbers["relative_norm"]
    held = tuned(place.start, 6, 0.05)
    names = [n for n, x in held.items() if x.dtype.kind == "f"]
    way = [held[n].astype(float) - place.start[n].astype(float) for n in names]
    norm = np.sqrt(sum((x**2).sum() for x in way))
    base = np.sqrt(sum((place.start[n].astype(float) ** 2).sum() for n in names))
    assert found == pytest.approx(norm / base, rel=1e-12)


def nan(place):
    tensors = tuned(place.start, 100)
    tensors["norm.weight"][2] = np.nan
    return tensors


def constant(place):
    tensors = tuned(place.start, 100)
    tensors["norm.weight"][:] = tensors["norm.weight"].mean()
    return tensors


def random_weights(place):
    return base_tensors(77)


def small_random_weights(place):
    return scaled(place.start, base_tensors(77), 1) | {
        n: 0.02 * x for n, x in base_tensors(78).items() if x.dtype.kind == "f"
    }


def other_integers(place):
    ids = place.start["embeddings.position_ids"][:, ::-1].copy()
    return {**tuned(place.start, 100), "embeddings.position_ids": ids}


def one_layer_far(place):
    tensors = tuned(place.start, 100)
    name = "encoder.layer.1.query.bias"
    far = scaled(place.start, tensors, 40)
    return {**tensors, name: far[name]}


ATTACKS = {
    # What fails, and which check says so.
    "NaN": (nan, ["finite"]),
    "infinity": (lambda p: {**nan(p), "norm.weight": np.full(8, np.inf, "f4")}, None),
    "100x delta": (lambda p: scaled(p.start, tuned(p.start, 100), 100), ["norm"]),
    "10x delta": (lambda p: scaled(p.start, tuned(p.start, 100), 10), ["cohort"]),
    "random weights": (random_weights, ["norm"]),
    "small random weights": (small_random_weights, ["norm"]),
    "all zero": (
        lambda p: {n: 0 * x if x.dtype.kind == "f" else x for n, x in p.start.items()},
        ["constant", "norm"],
    ),
    "zero delta": (lambda p: p.start, ["new", "changed"]),
    "hardly any delta": (
        lambda p: scaled(p.start, tuned(p.start, 100), 1e-5),
        ["changed"],
    ),
    "constant tensor": (constant, ["constant"]),
    "other integers": (other_integers, ["integers"]),
    "one layer far": (one_layer_far, ["cohort"]),
    # Not defended: it has the size of honest work.
    "sign-flipped": (lambda p: scaled(p.start, tuned(p.start, 100), -1), []),
    "3x delta": (lambda p: scaled(p.start, tuned(p.start, 100), 3), []),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_on_numbers(place, attack):
    make, checks = ATTACKS[attack]
    found = place.screen(place.candidate("attack", make(place)))
    verdict = found.pop("attack")
    assert failed(verdict) == (["finite"] if checks is None else checks)
    assert verdict.accepted == (checks == [])
    assert len(verdict.reasons) == len(failed(verdict))
    # Nobody else is hurt by it.
    assert all(other.accepted for other in found.values())


def test_a_ten_times_delta_is_told_by_the_cohort_in_words(place):
    attack = scaled(place.start, tuned(place.start, 100, 0.03), 10)
    verdict = place.screen(place.candidate("attack", attack))["attack"]
    assert "the whole model went" in verdict.reasons[0]
    assert "times the median of 8 contributions" in verdict.reasons[0]
    assert verdict.numbers["robust_z"] > 6


def test_a_few_are_not_compared_with_each_other(place):
    place.honest = place.honest[:3]
    attack = scaled(place.start, tuned(place.start, 100), 10)
    verdict = place.screen(place.candidate("attack", attack))["attack"]
    assert verdict.accepted
    assert verdict.checks["cohort"].startswith("not run: 4 contributions, from 5 on")


def test_a_tensor_that_is_constant_in_the_base_may_stay_so(tmp_path):
    place = Place(tmp_path)
    start = {**place.start, "norm.weight": np.ones(8, np.float32)}
    place.file = save(tmp_path / "base.safetensors", start)
    place.base = base_manifest(0, place.file)
    place.history = {0: place.base}
    held = {**tuned(start, 1), "norm.weight": start["norm.weight"]}
    found = place.screen(place.candidate("frozen", held), honest=False)
    assert found["frozen"].accepted


def test_a_short_way_is_no_fault(place):
    short = place.candidate("short", scaled(place.start, tuned(place.start, 100), 0.01))
    assert place.screen(short)["short"].accepted


def test_who_has_more_data_than_the_others_is_not_refused_for_that(place):
    place.honest = [
        place.candidate(f"few{k}", tuned(place.start, k, 0.004)) for k in range(6)
    ]
    rich = place.candidate("rich", tuned(place.start, 50, 0.08))
    verdict = place.screen(rich)["rich"]
    assert verdict.numbers["robust_z"] > 6  # twenty times the others
    assert verdict.accepted
    assert failed(place.screen(rich, limits=Limits(harmless=0))["rich"]) == ["cohort"]


def test_of_two_with_the_same_weights_the_smaller_manifest_stays(place):
    copy = replace(place.honest[2], name="copy", manifest_sha256="." * 64)
    found = place.screen(copy)
    assert found["copy"].accepted
    assert failed(found["honest2"]) == ["duplicate"]
    assert found["honest2"].reasons == ("duplicate: the same weights as copy",)


@pytest.mark.parametrize("factor", [1, 0.5, 2])
def test_copies_with_a_changed_bit_or_scaled_are_duplicates(place, factor):
    copy = scaled(place.start, tuned(place.start, 2, 0.03), factor)
    copy["norm.weight"][0] = np.nextafter(copy["norm.weight"][0], np.float32(9))
    verdict = place.screen(place.candidate("z-copy", copy))["z-copy"]
    assert failed(verdict) == ["duplicate"]
    assert (
        "the same direction as honest2 (cosine above 1 - 1e-06)" in verdict.reasons[0]
    )


def test_near_directions_of_other_data_are_no_duplicates(place):
    mine = tuned(place.start, 2, 0.03)
    near = {
        n: x if x.dtype.kind == "i" else x + np.float32(0.003) * (y - place.start[n])
        for (n, x), y in zip(mine.items(), tuned(place.start, 9).values(), strict=True)
    }
    assert place.screen(place.candidate("near", near))["near"].accepted


def test_a_broken_copy_does_not_displace_the_whole_one(place):
    copy = replace(place.honest[2], name="copy", manifest_sha256="." * 64)
    wrong = BaseReference(0, "f" * 64)
    copy = replace(copy, manifest=replace(copy.manifest, base=wrong))
    found = place.screen(copy)
    assert failed(found["copy"]) == ["base"]
    assert found["honest2"].accepted


def test_a_late_contribution_is_measured_from_its_own_base(place):
    now = tuned(place.start, 300, 0.3)
    place.files = {1: save(place.folder / "base1.safetensors", now)}
    place.history[1] = base_manifest(1, place.files[1])
    found = place.screen(round_=1)
    assert all(verdict.accepted for verdict in found.values())
    assert found["honest2"].numbers["relative_norm"] == pytest.approx(0.03, rel=0.01)


def test_the_probe_sees_what_numbers_do_not(place):
    flipped = scaled(place.start, tuned(place.start, 100), -1)
    attack = place.candidate("flipped", flipped)
    asked = []

    def probe(file):
        asked.append(file)
        return 0.4 if file == attack.file else 0.9

    huge = place.candidate("huge", scaled(place.start, tuned(place.start, 101), 100))
    found = place.screen(attack, huge, probe=probe)
    assert failed(found["flipped"]) == ["probe"]
    assert found["flipped"].numbers["probe"] == 0.4
    assert found["flipped"].numbers["probe_base"] == 0.9
    assert "from 0.9 with its base to 0.4" in found["flipped"].reasons[0]
    assert found["honest0"].accepted
    # The base once, and nobody who was refused already.
    assert asked.count(place.file) == 1
    assert huge.file not in asked
    assert found["huge"].checks["probe"] == "not run"
    lost = place.screen(probe=lambda file: float("nan"))
    assert failed(lost["honest0"]) == ["probe"]


def test_who_was_refused_early_keeps_that_verdict(place):
    one = replace(place.honest[0], file=None, name="late")
    before = {"late": Verdict(False, ("size: too large",), {"size": "failed: too"}, {})}
    verdict = place.screen(one, honest=False, before=before)["late"]
    assert verdict.reasons == ("size: too large",)
    assert not verdict.accepted
    without = place.screen(replace(one, name="x"), honest=False)["x"]
    assert without.reasons == ("hash: its weights were not downloaded",)


def test_two_candidates_of_one_name_are_an_error(place):
    with pytest.raises(ValueError, match="two candidates have one name"):
        screen([place.honest[0]] * 2, lambda _: place.file, LIMITS)


def test_memory_does_not_grow_with_candidates(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_file, "SPAN", 2**14)
    start = {"layer.0.w": np.random.default_rng(0).normal(size=(2**10, 2**9))}
    start = {n: x.astype(np.float32) for n, x in start.items()}
    file = save(tmp_path / "base.safetensors", start)
    base = base_manifest(0, file)
    candidates = []
    for k in range(16):
        held = save(tmp_path / f"{k}.safetensors", tuned(start, k))
        candidates.append(candidate(f"c{k}", held, base))
    peaks = {}
    for count in (2, 16):
        tracemalloc.start()
        found = screen(candidates[:count], lambda _: file, LIMITS)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert all(verdict.accepted for verdict in found.values())
    assert peaks[16] < peaks[2] + 2**17, peaks
    assert peaks[16] < 2**21, peaks  # of files with 2 MiB each
