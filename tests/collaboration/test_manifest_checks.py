"""What is refused before the download."""

from dataclasses import replace

import numpy as np
import pytest

from fusion_jax.checkpoints.manifests import BaseReference
from fusion_jax.collaboration.screening import Candidate, Limits, early
from fusion_jax.collaboration.verdicts import CHECKS
from tests.collaboration.bodies import base_manifest, base_tensors, part, save, tuned
from tests.collaboration.places import LIMITS, Place, failed

EARLY = list(CHECKS)[:8]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


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
    [
        None,
        [],
        {"w": None},
        {"w": ["F32"]},
        {"w": [1, [2]]},
        {"w": ["F32", 3]},
        {"a" * 10**6: ["F32", [3]]},
    ],
)
def test_tables_that_are_none_are_refused_not_raised(place, tensors):
    said = weights_of(place, tensors=tensors)
    assert "tensors" in failed(early_of(place, weights=said))


def test_all_that_is_wrong_is_said_at_once(place):
    said = weights_of(place, name="x.bin", bytes=10**12, tensors={})
    verdict = early_of(place, weights=said, base=BaseReference(7, ""))
    assert failed(verdict) == ["format", "size", "base", "tensors"]
    assert len(verdict.reasons) == 4


def test_what_went_into_a_base_does_not_go_in_again(place):
    sha256 = place.honest[0].manifest.weights.sha256
    later = base_manifest(1, save(place.folder / "b1.safetensors", base_tensors(5)))
    place.history[1] = replace(later, parts=(part(sha256),))
    verdict = early(place.honest[0], place.history, 1, LIMITS)
    assert failed(verdict) == ["new"]
    assert "went into base 1 already" in verdict.reasons[0]
    assert early(place.honest[0], place.history, 0, LIMITS).accepted
