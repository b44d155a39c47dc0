"""What a screen says of honest, broken and hostile contributions: real files."""

import json
import pickle
import tracemalloc
from dataclasses import asdict, replace

import ml_dtypes
import numpy as np
import pytest

from fusion_jax.checkpoints.manifests import BaseReference, TensorFile
from fusion_jax.collaboration.screening import Candidate, Limits, early, screen
from fusion_jax.collaboration.verdicts import CHECKS, Verdict
from tests.checkpoints.statistics import write_grams, write_model
from tests.collaboration.bodies import (
    base_manifest,
    base_tensors,
    candidate,
    contribution,
    part,
    save,
    scaled,
    tensor_file,
    tuned,
)

LIMITS = Limits()
EARLY = list(CHECKS)[:8]


class Place:
    """A base and seven honest contributions."""

    def __init__(self, folder, dtype=np.float32):
        self.folder = folder
        self.start = base_tensors(0, dtype)
        self.file = save(folder / "base.safetensors", self.start)
        self.base = base_manifest(0, self.file)
        self.history = {0: self.base}
        sizes = (0.02, 0.025, 0.03, 0.03, 0.035, 0.04, 0.05)
        self.honest = [
            self.candidate(f"honest{k}", tuned(self.start, k, size))
            for k, size in enumerate(sizes)
        ]

    def candidate(self, name, tensors, **more):
        file = save(self.folder / f"{name}.safetensors", tensors)
        return candidate(name, file, self.base, **more)

    def screen(self, *others, honest=True, limits=LIMITS, round_=0, **more):
        """Verdicts of the whole screen."""
        candidates = [*(self.honest if honest else ()), *others]
        before = {x.name: early(x, self.history, round_, limits) for x in candidates}
        files = {0: self.file, **getattr(self, "files", {})}
        more.setdefault("before", before)
        return screen(candidates, files.__getitem__, limits, **more)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def failed(verdict):
    """Checks that failed."""
    return [x for x, said in verdict.checks.items() if said.startswith("failed")]


# Honest ones.


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


# The attack table: what each attack fails, and nothing else.


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


# Copies.


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


def test_what_went_into_a_base_does_not_go_in_again(place):
    sha256 = place.honest[0].manifest.weights.sha256
    later = base_manifest(1, save(place.folder / "b1.safetensors", base_tensors(5)))
    place.history[1] = replace(later, parts=(part(sha256),))
    verdict = early(place.honest[0], place.history, 1, LIMITS)
    assert failed(verdict) == ["new"]
    assert "went into base 1 already" in verdict.reasons[0]
    assert early(place.honest[0], place.history, 0, LIMITS).accepted


# Before the download.


def early_of(place, limits=LIMITS, round_=0, fault="", **more):
    manifest = None if fault else replace(place.honest[0].manifest, **more)
    one = Candidate("c", manifest, "0" * 64, fault)
    return early(one, place.history, round_, limits)


def weights_of(place, **more):
    return replace(place.honest[0].manifest.weights, **more)


def test_early_runs_the_first_checks_alone(place):
    verdict = early_of(place)
    assert verdict.accepted
    assert [verdict.checks[x] for x in EARLY] == ["passed"] * 8
    assert {verdict.checks[x] for x in CHECKS if x not in EARLY} == {"not run"}


def test_a_manifest_that_cannot_be_read_is_refused_with_its_fault(place):
    verdict = early_of(place, fault="m.json: no JSON")
    assert verdict.reasons == ("manifest: m.json: no JSON",)
    assert set(list(verdict.checks.values())[1:]) == {"not run"}
    for field in ("weights", "base"):
        verdict = early_of(place, **{field: None})
        assert verdict.reasons == (f"manifest: {field} missing",)


@pytest.mark.parametrize("name", ["body.bin", "body.safetensors.pt", "body"])
def test_a_pickle_is_refused_unread(place, name):
    verdict = early_of(place, weights=weights_of(place, name=name))
    assert failed(verdict) == ["format"]
    assert "a pickle could run code" in verdict.reasons[0]


class Bomb:
    opened = False

    def __reduce__(self):
        return setattr, (Bomb, "opened", True)


def test_a_pickle_of_another_name_is_not_opened_either(place):
    file = place.folder / "bomb.safetensors"
    file.write_bytes(pickle.dumps(Bomb()))
    said = replace(
        weights_of(place), sha256=tensor_file_hash(file), bytes=file.stat().st_size
    )
    one = replace(
        place.honest[0],
        name="bomb",
        file=file,
        manifest=replace(place.honest[0].manifest, weights=said),
    )
    verdict = place.screen(one)["bomb"]
    assert failed(verdict) == ["header"]
    assert "no safetensors file" in verdict.reasons[0]
    assert not Bomb.opened


def tensor_file_hash(file):
    from fusion_jax.collaboration.weights_file import file_sha256

    return file_sha256(file)


def test_sizes(place):
    own = place.base.weights.bytes
    for size, fine in ((2 * own, True), (2 * own + 1, False), (0, False), (-4, False)):
        verdict = early_of(place, weights=weights_of(place, bytes=size))
        assert verdict.accepted == fine
    limits = Limits(max_bytes=own - 1)
    assert failed(early_of(place, limits=limits)) == ["size"]
    for stored, word in ((-1, "there are no weights"), (own + 9, "the store holds")):
        one = replace(place.honest[0], stored_bytes=stored)
        verdict = early(one, place.history, 0, LIMITS)
        assert failed(verdict) == ["size"] and word in verdict.reasons[0]
    one = replace(place.honest[0], stored_bytes=own)
    assert early(one, place.history, 0, LIMITS).accepted


def test_a_base_that_is_none_of_these(place):
    later = base_manifest(1, save(place.folder / "b1.safetensors", base_tensors(5)))
    place.history[1] = later
    wrong = {
        "another hash": BaseReference(0, "e" * 64),
        "not there yet": BaseReference(1, later.weights.sha256),
        "never there": BaseReference(-3, later.weights.sha256),
    }
    for base in wrong.values():
        assert failed(early_of(place, base=base)) == ["base"]
    assert early_of(place, base=wrong["not there yet"], round_=1).accepted


def test_a_base_that_is_too_old(place):
    for round_ in range(1, 5):
        file = save(place.folder / f"b{round_}.safetensors", base_tensors(round_))
        place.history[round_] = base_manifest(round_, file)
    assert early_of(place, round_=3).accepted
    verdict = early_of(place, round_=4)
    assert verdict.reasons == ("age: 4 rounds old, at most 3 are taken",)


def test_another_shape_dtype_or_tensor(place):
    table = dict(place.base.weights.tensors)
    changes = {
        "norm.weight is F32 (9,), in the base F32 (8,)": {"norm.weight": ["F32", [9]]},
        "norm.weight is BF16 (8,)": {"norm.weight": ["BF16", [8]]},
        "extra.weight is not in the base": {"extra.weight": ["F32", [8]]},
    }
    for word, change in changes.items():
        said = weights_of(place, tensors={**table, **change})
        verdict = early_of(place, weights=said)
        assert failed(verdict) == ["tensors"]
        assert word in verdict.reasons[0]
    table.pop("norm.weight")
    verdict = early_of(place, weights=weights_of(place, tensors=table))
    assert verdict.reasons == ("tensors: norm.weight is missing",)


@pytest.mark.parametrize(
    "name", ["classifier.weight", "score.weight", "lm_head.bias", "qa_outputs.weight"]
)
def test_a_head_is_refused(place, name):
    tensors = {**tuned(place.start, 100), name: np.zeros((2, 8), np.float32)}
    verdict = place.screen(place.candidate("head", tensors))["head"]
    assert failed(verdict) == ["head", "header"]
    assert f"{name} is of a head, which stays" in verdict.reasons[0]


@pytest.mark.parametrize(
    "tensors",
    [None, [], {"w": None}, {"w": ["F32"]}, {"w": [1, [2]]}, {"w": ["F32", 3]}],
)
def test_tables_that_are_none_are_refused_not_raised(place, tensors):
    said = weights_of(place, tensors=tensors)
    assert "tensors" in failed(early_of(place, weights=said))


def test_all_that_is_wrong_is_said_at_once(place):
    said = weights_of(place, name="x.bin", bytes=10**12, tensors={})
    verdict = early_of(place, weights=said, base=BaseReference(7, ""))
    assert failed(verdict) == ["format", "size", "base", "tensors"]
    assert len(verdict.reasons) == 4


# Of the file.


def test_a_file_that_is_not_what_the_manifest_says(place):
    held = tuned(place.start, 100)
    damaged = place.candidate("damaged", held)
    data = bytearray(damaged.file.read_bytes())
    data[-3] ^= 1
    damaged.file.write_bytes(data)
    shorter = place.candidate("shorter", tuned(place.start, 101))
    shorter.file.write_bytes(shorter.file.read_bytes()[:-8])
    found = place.screen(damaged, shorter)
    assert failed(found["damaged"]) == ["hash"]
    assert "it was damaged or replaced" in found["damaged"].reasons[0]
    # What can be looked at all the same is looked at.
    assert found["damaged"].checks["norm"] == "passed"
    assert failed(found["shorter"]) == ["hash", "header"]


def with_header(file, text, data):
    header = text.encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return file


@pytest.mark.parametrize(
    "text",
    [
        '{"w": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [1e30], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        '{"w": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__"',
        "[" * 100_000,
        "7",
    ],
)
def test_headers_of_any_kind_are_refused_not_raised(place, text):
    file = with_header(place.folder / "odd.safetensors", text, bytes(16))
    said = TensorFile("odd.safetensors", tensor_file_hash(file), file.stat().st_size)
    manifest = replace(place.honest[0].manifest, weights=said)
    one = Candidate("odd", manifest, "9" * 64, file=file)
    verdict = place.screen(one, before={})["odd"]
    assert failed(verdict) == ["header"]


def test_bytes_of_no_tensor_are_refused(place):
    file = place.honest[0].file
    file.write_bytes(file.read_bytes() + b"payload!")
    said = replace(place.honest[0].manifest.weights, sha256=tensor_file_hash(file))
    said = replace(said, bytes=file.stat().st_size)
    manifest = replace(place.honest[0].manifest, weights=said)
    one = replace(place.honest[0], name="more", manifest=manifest)
    place.honest = place.honest[1:]
    verdict = place.screen(one)["more"]
    assert verdict.reasons == ("header: 8 bytes belong to no tensor",)


def test_a_manifest_that_lies_about_the_table_is_refused(place):
    said = weights_of(place, tensors={**place.base.weights.tensors})
    held = {**tuned(place.start, 100), "norm.weight": np.ones(9, np.float32)}
    file = save(place.folder / "lie.safetensors", held)
    said = replace(said, sha256=tensor_file_hash(file), bytes=file.stat().st_size)
    manifest = contribution(file, place.base, weights=said)
    one = Candidate("lie", manifest, "9" * 64, file=file)
    verdict = place.screen(one)["lie"]
    assert failed(verdict) == ["header"]
    assert "the manifest's table" in verdict.reasons[0]
    assert "norm.weight is F32 (9,)" in verdict.reasons[0]


def test_statistics_are_of_these_weights_or_refused(tmp_path):
    start = write_model(tmp_path / "base", 9) / "model.safetensors"
    base = base_manifest(0, start)
    models = [write_model(tmp_path / f"m{k}", k) for k in range(2)]
    grams = [
        write_grams(tmp_path / f"g{k}.safetensors", models[k], k) for k in range(2)
    ]

    def screened(k, gram, **more):
        said = replace(tensor_file(gram), **more)
        one = candidate("c", models[k] / "model.safetensors", base, statistics=said)
        one = replace(one, statistics=gram)
        limits = Limits(max_relative_norm=3)
        return screen([one], lambda _: start, limits)["c"]

    assert screened(0, grams[0]).checks["statistics"] == "passed"
    verdict = screened(0, grams[1])
    assert failed(verdict) == ["statistics"]
    assert "is of other weights" in verdict.reasons[0]
    assert "SHA-256" in screened(0, grams[0], sha256="0" * 64).reasons[0]
    bad = tmp_path / "bad.safetensors"
    write_grams(bad, models[0], 0, arrays={"inputs/in": np.full(21, np.nan, "f4")})
    assert failed(screened(0, bad)) == ["statistics"]
    garbage = with_header(tmp_path / "garbage.safetensors", "7", b"")
    one = replace(
        candidate("c", models[0] / "model.safetensors", base),
        statistics=garbage,
    )
    said = TensorFile("g.safetensors", tensor_file_hash(garbage), 9)
    one = replace(one, manifest=replace(one.manifest, statistics=said))
    limits = Limits(max_relative_norm=3)
    assert failed(screen([one], lambda _: start, limits)["c"]) == ["statistics"]


# Late ones, and the probe.


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
    from fusion_jax.collaboration import weights_file

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
