"""What is refused of a downloaded file."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from fusion_jax.checkpoints.manifests import TensorFile
from fusion_jax.checkpoints.object_files import file_sha256
from fusion_jax.collaboration.screening import Candidate, Limits, screen
from tests.checkpoints.statistics import write_grams, write_model
from tests.collaboration.bodies import (
    base_manifest,
    candidate,
    contribution,
    save,
    tensor_file,
    tuned,
)
from tests.collaboration.places import Place, failed


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


class Bomb:
    opened = False

    def __reduce__(self):
        return setattr, (Bomb, "opened", True)


def test_a_pickle_of_another_name_is_not_opened_either(place):
    file = place.folder / "bomb.safetensors"
    file.write_bytes(pickle.dumps(Bomb()))
    said = replace(
        place.honest[0].manifest.weights,
        sha256=file_sha256(file),
        bytes=file.stat().st_size,
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
    said = TensorFile("odd.safetensors", file_sha256(file), file.stat().st_size)
    manifest = replace(place.honest[0].manifest, weights=said)
    one = Candidate("odd", manifest, "9" * 64, file=file)
    verdict = place.screen(one, before={})["odd"]
    assert failed(verdict) == ["header"]


def test_bytes_of_no_tensor_are_refused(place):
    file = place.honest[0].file
    file.write_bytes(file.read_bytes() + b"payload!")
    said = replace(place.honest[0].manifest.weights, sha256=file_sha256(file))
    said = replace(said, bytes=file.stat().st_size)
    manifest = replace(place.honest[0].manifest, weights=said)
    one = replace(place.honest[0], name="more", manifest=manifest)
    place.honest = place.honest[1:]
    verdict = place.screen(one)["more"]
    assert verdict.reasons == ("header: 8 bytes belong to no tensor",)


def test_a_manifest_that_lies_about_the_table_is_refused(place):
    said = replace(
        place.honest[0].manifest.weights, tensors={**place.base.weights.tensors}
    )
    held = {**tuned(place.start, 100), "norm.weight": np.ones(9, np.float32)}
    file = save(place.folder / "lie.safetensors", held)
    said = replace(said, sha256=file_sha256(file), bytes=file.stat().st_size)
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
    said = TensorFile("g.safetensors", file_sha256(garbage), 9)
    one = replace(one, manifest=replace(one.manifest, statistics=said))
    limits = Limits(max_relative_norm=3)
    assert failed(screen([one], lambda _: start, limits)["c"]) == ["statistics"]
