"""Files of statistics: what is written is read, and what does not belong is refused."""

import hashlib
import json
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fusion_jax.atomic import WriteFailed
from fusion_jax.checkpoints.lazy import open_checkpoint
from fusion_jax.checkpoints.statistics_check import checked_statistics
from fusion_jax.checkpoints.statistics_file import (
    Layer,
    Manifest,
    read_statistics,
    side,
    stored_gram,
    weights_sha256,
    write_statistics,
)
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.merging.gram_forms import block_diagonal
from tests.checkpoints.folders import write_folder
from tests.checkpoints.statistics import (
    LAYERS,
    grams_of,
    manifest_of,
    outputs_of,
    tensors_of,
    write_fishers,
    write_grams,
    write_model,
)


@pytest.fixture
def place(tmp_path):
    """Two models and their Grams."""
    for seed, name in enumerate("AB"):
        write_model(tmp_path / name, seed)
        write_grams(tmp_path / f"{name}.safetensors", tmp_path / name, seed)
    return tmp_path


def refusal(place, method="regmean", files=("A.safetensors", "B.safetensors")):
    models = {name: open_checkpoint(place / name) for name in "AB"}
    with pytest.raises(CheckpointError) as refused:
        checked_statistics(method, models, [place / file for file in files])
    return str(refused.value)


def random_gram(width, seed, tokens=40):
    random = np.random.default_rng(seed)
    x = np.concatenate(
        [random.normal(size=(tokens, width)) + 1, np.ones((tokens, 1))], 1
    )
    return (x.T @ x / tokens).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(width=st.integers(1, 12), seed=st.integers(0, 99), block=st.integers(1, 13))
def test_a_gram_in_any_form_is_read_as_it_was_written(
    tmp_path_factory, width, seed, block
):
    gram = random_gram(width, seed)
    blocks = block_diagonal(gram, block)
    arrays = stored_gram("whole", gram)
    arrays |= stored_gram("blocks", blocks, block=block)
    arrays |= stored_gram("rank", gram, rank=width + 1)
    arrays |= stored_gram("little", gram, rank=1)
    layers = {f"{n}.weight": Layer(n, None, -1) for n in ("whole", "blocks", "rank")}
    layers["little.weight"] = Layer("little", None, -1)
    file = tmp_path_factory.mktemp("grams") / "one.safetensors"
    write_statistics(file, Manifest("gram", "m", "", layers=layers), arrays)
    found = read_statistics(file)
    np.testing.assert_array_equal(found.gram("whole.weight"), gram)
    np.testing.assert_allclose(found.gram("blocks.weight"), blocks, rtol=1e-5)
    np.testing.assert_allclose(found.gram("rank.weight"), gram, rtol=1e-4, atol=1e-4)
    # The diagonal is kept at any rank.
    np.testing.assert_allclose(
        np.diag(found.gram("little.weight")), np.diag(gram), rtol=1e-4
    )
    for name in layers:
        assert found.width(name) == width + 1
        assert found.gram(name).dtype == np.float32


def test_blocks_take_less_room(tmp_path):
    gram = random_gram(64, 0, tokens=300)
    whole = sum(x.size for x in stored_gram("x", gram).values())
    cut = block_diagonal(gram, 8)
    assert sum(x.size for x in stored_gram("x", cut, block=8).values()) < whole / 5
    assert sum(x.size for x in stored_gram("x", gram, rank=4).values()) < whole / 5


def test_a_file_says_what_it_is_and_tools_open_it(place):
    found = read_statistics(place / "A.safetensors")
    assert found.manifest == manifest_of(place / "A")
    assert found.manifest.layers == LAYERS
    for name, gram in outputs_of(0).items():
        np.testing.assert_array_equal(found.output(name), gram)
        np.testing.assert_array_equal(found.gram(name), grams_of(0)[LAYERS[name].input])
        assert found.tokens(name) == 50
    with safetensors.safe_open(place / "A.safetensors", framework="numpy") as handle:
        metadata = handle.metadata()
    assert metadata["format"] == "pt"
    said = json.loads(metadata["fusion_jax_statistics"])
    assert said["schema_version"] == 1 and said["examples"] == 20
    assert said["layers"]["up.weight"] == {
        "input": "in",
        "bias": "up.bias",
        "input_axis": -1,
    }
    assert str(place) not in metadata["fusion_jax_statistics"]


def test_fishers_keep_names_and_shapes(tmp_path):
    file = tmp_path / "f.safetensors"
    arrays = {"a": np.float32(3), "b": np.ones((2, 3), np.float32)}
    write_statistics(file, Manifest("fisher", "m", ""), arrays)
    found = read_statistics(file)
    assert found.fisher("a").shape == () and found.fisher("a") == 3
    assert found.fisher("b").shape == (2, 3)


@pytest.mark.parametrize("size, n", [(0, 0), (1, 1), (3, 2), (21, 6), (20, 0), (2, 0)])
def test_the_side_of_a_triangle(size, n):
    assert side(size) == n


def test_the_hash_is_of_the_content_alone(tmp_path):
    tensors = tensors_of(3) | {"half": np.ones(3, ml_dtypes.bfloat16)}
    tensors["none"] = np.zeros((0, 4), np.float32)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"{name}\0{x.dtype}\0{x.shape}\0".encode() + x.tobytes())

    def hashed(name, tensors, **more):
        return weights_sha256(
            open_checkpoint(write_folder(tmp_path / name, tensors, **more))
        )

    assert hashed("one", tensors) == digest.hexdigest()
    turned = dict(reversed(tensors.items()))
    assert hashed("shards", turned, shards=3) == digest.hexdigest()
    changed = {**tensors, "scale": np.nextafter(tensors["scale"], 9)}
    renamed = {n.replace("up.", "upp."): x for n, x in tensors.items()}
    shaped = {**tensors, "embed.weight": tensors["embed.weight"].reshape(5, 9)}
    others = {
        hashed("changed", changed),
        hashed("renamed", renamed),
        hashed("shaped", shaped),
        digest.hexdigest(),
    }
    assert len(others) == 4


def test_a_truncated_file_is_told(place):
    file = place / "B.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    said = refusal(place)
    assert "1 faults" in said and re.search(r"B\.safetensors .* is truncated", said)


def test_a_file_that_is_none_is_told(place):
    save_file({"x": np.ones(2)}, place / "B.safetensors")
    said = refusal(place, files=("A.safetensors", "nowhere.safetensors"))
    assert "nowhere.safetensors: no such file of statistics" in said
    assert "B.safetensors: holds no statistics" in refusal(place)


@pytest.mark.parametrize(
    "said, told",
    [
        ({"schema_version": 2, "layers": {}}, "statistics of version 2"),
        ({"schema_version": 1, "layers": {}, "kind": "gram"}, "cannot be read"),
        ({"layers": {}}, "cannot be read"),
        ("gram", "cannot be read"),
    ],
)
def test_a_manifest_that_is_none_is_told(tmp_path, said, told):
    metadata = {"fusion_jax_statistics": json.dumps(said)}
    file = tmp_path / "x.safetensors"
    save_file({"x": np.ones(2)}, file, metadata)
    with pytest.raises(CheckpointError, match=told):
        read_statistics(file)


def test_a_file_is_written_whole_or_not_at_all(place, monkeypatch):
    before = (place / "A.safetensors").read_bytes()

    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(WriteFailed, match="the disk is full"):
        write_grams(place / "A.safetensors", place / "A", 1)
    assert (place / "A.safetensors").read_bytes() == before
    assert not [file for file in place.iterdir() if file.name.startswith(".")]


def test_statistics_that_fit_are_taken(place):
    models = {name: open_checkpoint(place / name) for name in "AB"}
    files = [place / "A.safetensors", place / "B.safetensors"]
    for method in ("regmean", "mats"):
        assert list(checked_statistics(method, models, files)) == ["A", "B"]


def test_swapped_files_are_told_whose_they_are(place):
    said = refusal(place, files=("B.safetensors", "A.safetensors"))
    assert "2 faults" in said
    assert "B.safetensors: is of the model B, and stands in the place of A" in said
    assert "A.safetensors: is of the model A, and stands in the place of B" in said


def test_statistics_of_other_weights_are_told(place):
    write_model(place / "C", 7)
    write_grams(place / "B.safetensors", place / "C", 1)
    said = refusal(place)
    assert "1 faults" in said
    assert "B.safetensors: is of other weights than B has (of 'C', SHA-256 " in said


def test_every_fault_is_told_at_once(place):
    layers = {**LAYERS, "gone.weight": Layer("in", "gone.bias", -1)}
    del layers["down.weight"]
    layers["embed.weight"] = Layer("middle", None, -1)
    nan = stored_gram("in", grams_of(0)["in"])
    nan["inputs/in"][3] = np.nan
    write_grams(
        place / "B.safetensors",
        place / "B",
        1,
        layers=layers,
        counts={"in": 0.0, "middle": 50.0},
        arrays=nan,
    )
    said = refusal(place)
    for line in (
        "gone.weight is no tensor of the model",
        "up.weight has seen no token (input in)",
        "embed.weight reads 5 inputs, its Gram is of 7",
        "inputs/in holds NaN or infinity (1 of 21)",
        "down.weight: " + str(place / "B.safetensors") + " has no statistics of it",
        "gone.weight: " + str(place / "A.safetensors") + " has no statistics of it",
    ):
        assert line in said, said


def test_layers_described_differently_are_told(place):
    layers = {**LAYERS, "up.weight": LAYERS["up.weight"]._replace(bias=None)}
    write_grams(place / "B.safetensors", place / "B", 1, layers=layers)
    assert "up.weight: its bias or input axis differs between files" in refusal(place)


def test_the_wrong_kind_is_told(place):
    assert "B.safetensors: holds statistics of kind 'gram', fisher reads 'fisher'" in (
        refusal(place, "fisher")
    )
    write_fishers(place / "B.safetensors", place / "B", 1)
    said = refusal(place, "regmean")
    assert "write them with --kind gram" in said and "1 faults" in said


def test_mats_needs_gradients_at_outputs(place):
    arrays = {}
    for name, gram in grams_of(1).items():
        arrays |= stored_gram(name, gram)
    write_statistics(place / "B.safetensors", manifest_of(place / "B"), arrays)
    said = refusal(place, "mats")
    assert "up.weight has 7 outputs, its gradients 0" in said
    assert "--output-gradients" in said


@pytest.mark.parametrize(
    "change, told",
    [
        ({"scale": np.full(5, -1.0)}, "scale is negative (5 of 5)"),
        ({"scale": np.full(5, np.inf)}, "scale holds NaN or infinity (5 of 5)"),
        ({"scale": np.ones(4)}, "scale has shape (4,), in the model (5,)"),
        ({"other": np.ones(4)}, "other is no tensor of the model"),
    ],
)
def test_fishers_that_do_not_fit_are_told(place, change, told):
    write_fishers(place / "A.safetensors", place / "A", 0)
    arrays = {n: np.ones(x.shape) for n, x in tensors_of(0).items()} | change
    write_statistics(
        place / "B.safetensors", manifest_of(place / "B", "fisher"), arrays
    )
    assert told in refusal(place, "fisher")


def test_fishers_of_no_example_are_told(place):
    write_fishers(place / "A.safetensors", place / "A", 0)
    write_fishers(place / "B.safetensors", place / "B", 1, examples=0)
    assert "B.safetensors: is of 0 examples" in refusal(place, "fisher")
