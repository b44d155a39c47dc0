import json
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy

from fusion_jax import trees
from fusion_jax.checkpoints.module_file import (
    RECORD,
    WEIGHTS,
    OtherHost,
    host_hash,
    load_module,
    save_module,
)
from fusion_jax.checkpoints.tensors import CheckpointError, hash_params
from fusion_jax.peft import PeftConfig, init_module
from tests.peft.hosts import CONFIGS, host_of, moved

NAME = "encoder/layer_0/attention/query/lora/a"


def module_of(config=CONFIGS["lora_and_norms"], family="bert"):
    host = host_of(family)
    about = {"name": "tiny", "sha256": host_hash(host)}
    return moved(init_module(config, host, jax.random.key(0), about=about))


@pytest.fixture
def saved(tmp_path):
    return save_module(tmp_path / "module", module_of())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_module_comes_back_bit_for_bit(name, tmp_path):
    module = module_of(CONFIGS[name])
    save_module(tmp_path / "module", module, card="# a module\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_module(tmp_path / "module", host=host_of(), strict_host=True)
    assert again.config == module.config and again.host == module.host
    assert hash_params(again.params) == hash_params(module.params)
    assert (tmp_path / "module" / "README.md").is_file()


def test_a_module_that_brings_its_head_fits_a_host_without_one(saved):
    bare = {"encoder": host_of()["encoder"]}
    assert trees.flatten(load_module(saved, host=bare).params)


def change(folder, edit):
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def test_missing_extra_and_wrongly_shaped_tensors_are_listed_together(saved):
    def edit(tensors):
        tensors["head/extra"] = np.zeros(3, np.float32)
        tensors[NAME] = tensors[NAME][:-1].copy()
        del tensors[NAME.replace("query", "value")]

    change(saved, edit)
    with pytest.raises(CheckpointError, match="3 leaves do not fit") as told:
        load_module(saved)
    for fault in (
        "head/extra: not in module.json",
        f"{NAME}: shape (15, 2), (16, 2) in module.json",
        f"{NAME.replace('query', 'value')}: missing",
    ):
        assert fault in str(told.value)


def test_another_rank_than_the_config_is_refused_by_its_leaf(saved):
    record = json.loads((saved / RECORD).read_text())
    record["config"]["rank"] = 3
    (saved / RECORD).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="the config has rank 3 here") as told:
        load_module(saved)
    assert str(told.value).count("has rank 3") == 8


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("lora", {"use_dora": True}, "lora/magnitude: missing"),
        ("dora", {"use_dora": False}, "use_dora = False"),
        ("prompt", {"length": 4}, "3 rows, but the config has length 4"),
        ("ia3", {"kind": "lora"}, "no leaf of a lora module"),
    ],
)
def test_a_config_that_means_another_module_is_refused(name, change, said, tmp_path):
    folder = save_module(tmp_path / "module", module_of(CONFIGS[name]))
    record = json.loads((folder / RECORD).read_text())
    record["config"] |= change
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=said):
        load_module(folder)


def test_a_module_of_another_architecture_is_told_by_the_host(tmp_path):
    folder = save_module(tmp_path / "module", module_of(PeftConfig(), "gpt2"))
    with pytest.raises(CheckpointError, match="attention/qkv/lora/a: not in a module"):
        load_module(folder, host=host_of())


def test_another_host_is_a_warning_or_with_strict_host_an_error(saved):
    other = jax.tree.map(lambda x: x + 1, host_of())
    with pytest.warns(OtherHost, match="made for the host tiny"):
        load_module(saved, host=other)
    with pytest.raises(CheckpointError, match="made for the host tiny"):
        load_module(saved, host=other, strict_host=True)


def test_a_module_that_names_no_host_is_not_good_enough_to_be_strict(saved):
    record = json.loads((saved / RECORD).read_text())
    (saved / RECORD).write_text(json.dumps({**record, "host": {}}))
    load_module(saved, host=host_of())
    with pytest.raises(CheckpointError, match="does not say which host"):
        load_module(saved, host=host_of(), strict_host=True)


def test_the_head_is_no_part_of_the_host(saved):
    host = host_of()
    other = {**host, "head": jax.tree.map(lambda x: x + 1, host["head"])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_module(saved, host=other)


def test_a_folder_that_is_no_module_says_what_it_holds(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_module(tmp_path / "nowhere")
    (saved / WEIGHTS).rename(saved / "module.bin")
    with pytest.raises(CheckpointError, match=r"no module.safetensors.*pickle"):
        load_module(saved)
    (saved / RECORD).unlink()
    with pytest.raises(CheckpointError, match=r"is no module: it has no module\.json"):
        load_module(saved)


def test_a_record_that_does_not_read_is_named(saved):
    for text in ("{", '{"format": "fusion_jax module", "schema": 1}', "[]"):
        (saved / RECORD).write_text(text)
        with pytest.raises(CheckpointError, match="no record of a module"):
            load_module(saved)
    (saved / RECORD).write_text('{"format": "other", "schema": 7}')
    with pytest.raises(CheckpointError, match="of format 'other', schema 7"):
        load_module(saved)


def test_what_is_not_finite_or_not_of_the_config_is_not_written(tmp_path):
    module = module_of()
    broken = jax.tree.map(lambda x: x * np.nan, module.params)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        save_module(tmp_path / "module", module._replace(params=broken))
    with pytest.raises(CheckpointError, match="has rank 5 here"):
        save_module(tmp_path / "module", module._replace(config=PeftConfig(rank=5)))
    assert not (tmp_path / "module").exists()
