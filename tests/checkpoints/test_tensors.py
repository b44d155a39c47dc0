import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusion_jax.checkpoints.tensors import CheckpointError, read_weights

A = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
B = {"b": np.ones(4, np.float32)}


def shard(folder, weight_map):
    save_file(A, folder / "model-1.safetensors")
    save_file(B, folder / "model-2.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


MAP = {"a": "model-1.safetensors", "b": "model-2.safetensors"}


def test_shards_read_as_one_with_the_file_of_each(tmp_path):
    shard(tmp_path, MAP)
    found = read_weights(tmp_path)
    np.testing.assert_array_equal(found["a"][0], A["a"])
    assert found["b"][1] == tmp_path / "model-2.safetensors"


def test_missing_shards_are_named(tmp_path):
    shard(tmp_path, MAP | {"c": "model-3.safetensors"})
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-2\.safetensors, model-3\.safetensors"
    ):
        read_weights(tmp_path)


def test_tensors_that_the_index_promises_in_vain_are_named(tmp_path):
    shard(tmp_path, MAP | {"c": "model-1.safetensors"})
    with pytest.raises(CheckpointError, match=r"lack: c \(model-1\.safetensors\)"):
        read_weights(tmp_path)


def test_a_broken_index_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weights": 1}')
    with pytest.raises(CheckpointError, match=r"index\.json is no index of shards"):
        read_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_files_are_named_with_their_size(tmp_path, keep):
    file = tmp_path / "model.safetensors"
    save_file(A | B, file)
    data = file.read_bytes()[:keep]
    file.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path)
    assert f"{file} ({len(data)} bytes) is truncated" in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_refused_with_the_reason_and_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(CheckpointError, match=rf"{name}.*runs whatever code"):
        read_weights(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors.*notes\.txt"):
        read_weights(tmp_path)
