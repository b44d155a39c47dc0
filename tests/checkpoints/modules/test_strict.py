"""What torch peft passes over in silence is told here, all of it at once."""

import json

import numpy as np
import pytest

from fusion_jax.checkpoints.modules import load_module, save_module
from fusion_jax.checkpoints.tensors import CheckpointError
from tests.checkpoints.modules.files import (
    assert_same_leaves,
    change_config,
    change_tensors,
    module,
)
from tests.peft.hosts import CONFIGS

QUERY = "base_model.model.bert.encoder.layer.1.attention.self.query"


@pytest.fixture
def folder(tmp_path):
    return save_module(tmp_path / "lora", module(CONFIGS["lora"]), form="peft")


def refused(folder, **options):
    with pytest.raises(CheckpointError) as told:
        load_module(folder, **options)
    return str(told.value)


def test_all_faults_of_tensors_are_in_one_error(folder):
    def change(tensors):
        tensors["base_model.model.bert.oops.lora_A.weight"] = np.ones((2, 3), "f4")
        tensors["base_model.model.classifier.weight"] = np.ones((3, 16), "f4")
        tensors[f"{QUERY}.lora_A.weight"] = np.ones((5, 16), "f4")
        del tensors[f"{QUERY}.lora_B.weight"]
        del tensors[f"{QUERY.replace('query', 'value')}.lora_A.weight"]
        del tensors[f"{QUERY.replace('query', 'value')}.lora_B.weight"]

    change_tensors(folder, change)
    said = refused(folder)
    for part in (
        "base_model.model.bert.oops.lora_A.weight is unexpected",
        "classifier is unexpected: neither modules_to_save nor bias ('none')",
        "query.lora_B is missing",
        "query.lora_A has rank 5, adapter_config.json says 2",
        "encoder/layer_1/attention/value is missing: target_modules names it",
        "5 faults against its adapter_config.json",
    ):
        assert part in said, said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA' is not one of LORA, IA3"),
        ({"r": 4}, "has rank 2, adapter_config.json says 4"),
        ({"target_modules": ["query"]}, "value is unexpected: target_modules does not"),
        ({"target_modules": ["query", "value", "key"]}, "attention/key is missing"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"lora_bias": True}, "an update with a bias of its own"),
        ({"layer_replication": [[0, 2]]}, "the host would have other layers"),
        ({"trainable_token_indices": [1]}, "rows of the embedding table"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight"),
        ({"new_thing": "on"}, "new_thing is not known here and is 'on'"),
        ({"layers_to_transform": [0]}, "layer.1.attention.self.query is unexpected"),
        ({"exclude_modules": ["value"]}, "value is unexpected"),
    ],
)
def test_keys_that_change_the_meaning_are_refused(folder, values, said):
    change_config(folder, **values)
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"use_rslora": "false"}, "use_rslora is 'false': true or false"),
        ({"lora_alpha": True}, "lora_alpha is True: a finite number"),
        ({"lora_alpha": None}, "lora_alpha is None: a finite number"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x': a finite number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan: a finite number"),
        ({"lora_dropout": "x"}, "lora_dropout is 'x': a finite number"),
        ({"r": "2"}, "r is '2': a whole number"),
        ({"target_modules": "[query"}, "target_modules: '[query' is no regular"),
        ({"target_modules": 5}, "target_modules is 5: a list of names or one"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern: '(' is no regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern is [1]: a map of patterns"),
        ({"alpha_pattern": {"query": "4"}}, "alpha_pattern is {'query': '4'}: a map"),
        ({"modules_to_save": ["("]}, "modules_to_save: '(' is no regular expression"),
        ({"modules_to_save": "classifier"}, "modules_to_save is 'classifier': a list"),
        ({"layers_to_transform": "0"}, "layers_to_transform is '0': a whole number"),
        ({"num_layers": "a"}, "num_layers is 'a': a whole number"),
        ({"init_lora_weights": ["a"]}, "init_lora_weights is ['a']: true, false or"),
    ],
)
def test_values_of_another_type_are_faults_and_not_converted(folder, values, said):
    change_config(folder, **values, lora_bias=True)
    told = refused(folder)
    assert said in told, told
    assert "an update with a bias of its own" in told  # beside the other faults


def test_keys_that_do_not_are_read_or_told(folder):
    change_config(folder, peft_version="9.9", revision="main", ensure_weight_tying=True)
    load_module(folder)
    change_config(folder, new_thing=None)
    with pytest.warns(UserWarning, match="new_thing is not known here; it is off"):
        load_module(folder)
    change_config(folder, new_thing=3)
    assert_same_leaves(
        load_module(folder, ignore=["new_thing"]), module(CONFIGS["lora"])
    )


@pytest.mark.parametrize(
    "targets",
    [
        ["attention.self.query", "value"],
        r".*\.(query|value)",
        [
            "encoder.layer.0.attention.self.query",
            "layer.1.attention.self.query",
            "value",
        ],
    ],
)
def test_targets_mean_what_they_mean_to_peft(folder, targets):
    change_config(folder, target_modules=targets)
    assert_same_leaves(load_module(folder), module(CONFIGS["lora"]))


def test_the_first_pattern_of_a_rank_counts(folder):
    def change(tensors):
        tensors[f"{QUERY}.lora_A.weight"] = np.ones((3, 16), "f4")
        tensors[f"{QUERY}.lora_B.weight"] = np.ones((16, 3), "f4")

    change_tensors(folder, change)
    change_config(
        folder,
        rank_pattern={r"layer\.1\.attention\.self\.query": 3, "query": 2},
        alpha_pattern={"query": 12},
    )
    one = load_module(folder)
    assert dict(one.config.rank_pattern) == {"encoder/layer_1/attention/query": 3}
    assert set(dict(one.config.alpha_pattern).values()) == {12.0}
    change_config(folder, rank_pattern={"query": 2, r"layer\.1.*query": 3})
    assert "has rank 3, adapter_config.json says 2" in refused(folder)


def test_a_magnitude_without_dora_is_unexpected(tmp_path):
    folder = save_module(tmp_path / "out", module(CONFIGS["dora"]), form="peft")
    change_config(folder, use_dora=False)
    assert "lora_magnitude_vector is unexpected (use_dora is not set)" in refused(
        folder
    )


def test_pickles_are_not_opened(folder, tmp_path):
    (folder / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in refused(folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    said = refused(folder)
    assert "only as a pickle (adapter_model.bin)" in said and "torch peft" in said
    hub = save_module(tmp_path / "hub", module(CONFIGS["houlsby"]), form="adapterhub")
    (hub / "adapter.safetensors").rename(hub / "pytorch_adapter.bin")
    assert "only as a pickle (pytorch_adapter.bin)" in refused(hub)


def test_damaged_files_are_named(folder):
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "truncated" in refused(folder)
    (folder / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not valid JSON" in refused(folder)


def test_what_is_not_finite_is_refused(folder):
    def change(tensors):
        tensors[f"{QUERY}.lora_A.weight"][0, 0] = np.nan

    change_tensors(folder, change)
    assert "NaN or infinity in encoder/layer_1/attention/query/lora/a" in refused(
        folder
    )


def test_another_family_is_another_architecture(folder):
    said = refused(folder, family="gpt2")
    assert f"{QUERY}.lora_A.weight is unexpected" in said
    assert "family 'bart' is not one of" in refused(folder, family="bart")


def test_virtual_tokens_are_counted(tmp_path):
    folder = save_module(tmp_path / "out", module(CONFIGS["prompt"]), form="peft")
    change_config(folder, num_virtual_tokens=4)
    assert "has shape (3, 16), adapter_config.json says (4, 16)" in refused(folder)
    change_config(folder, num_virtual_tokens="3")
    assert "num_virtual_tokens is '3', not a count" in refused(folder)
    # An encoder-decoder's file has the rows twice, of which peft reads the first half.
    change_config(folder, num_virtual_tokens=3, num_transformer_submodules=2)

    def double(tensors):
        rows = tensors["prompt_embeddings"]
        tensors["prompt_embeddings"] = np.concatenate([rows, rows + 1])

    change_tensors(folder, double)
    assert_same_leaves(load_module(folder), module(CONFIGS["prompt"]))


def test_a_prefix_of_an_encoder_decoder_is_refused(tmp_path):
    from dataclasses import replace

    one = module(replace(CONFIGS["prefix"], shift_positions=True))
    folder = save_module(tmp_path / "out", one, form="peft")
    change_config(folder, num_transformer_submodules=2)
    assert "one block for two attentions" in refused(folder)
    change_config(folder, num_transformer_submodules=1, num_layers=3)
    assert "adapter_config.json says (3, 96)" in refused(folder)
    assert "no place here for keys" in refused(folder, family="gpt2")


def test_vectors_scale_the_side_that_the_config_says(tmp_path):
    folder = save_module(tmp_path / "out", module(CONFIGS["ia3"]), form="peft")
    values = json.loads((folder / "adapter_config.json").read_text())
    change_config(folder, feedforward_modules=[])
    assert "its vector scales the input, feedforward_modules says the other" in refused(
        folder
    )
    change_config(folder, feedforward_modules=values["target_modules"])
    assert "scales the output" in refused(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ln_after": True}, "a norm of its own"),
        ({"inv_adapter": "nice"}, "invertible"),
        ({"scaling": "learned"}, "a trained scaling"),
        ({"phm_layer": True}, "Compacter"),
        ({"non_linearity": "leakyrelu"}, "'leakyrelu' is not one of relu, gelu"),
        ({"architecture": "lora"}, "'lora' is no bottleneck"),
        ({"reduction_factor": 8}, "the config says"),
        ({"mh_adapter": False}, "is unexpected: the config has no adapter there"),
        ({"leave_out": [1]}, "is unexpected: the config has no adapter there"),
        ({"new_thing": 3}, "new_thing is not known here and is 3"),
        ({"residual_before_ln": False, "original_ln_before": True}, "another residual"),
    ],
)
def test_settings_of_adapterhub_that_ours_cannot_say(tmp_path, values, said):
    folder = save_module(
        tmp_path / "out", module(CONFIGS["houlsby"]), form="adapterhub"
    )
    own = json.loads((folder / "adapter_config.json").read_text())["config"]
    change_config(folder, config=own | values)
    assert said in refused(folder)


def test_adapters_of_older_versions_are_read(tmp_path):
    folder = save_module(
        tmp_path / "out", module(CONFIGS["houlsby"]), form="adapterhub"
    )
    values = json.loads((folder / "adapter_config.json").read_text())
    del values["version"]  # then 'gelu' is the tanh form
    (folder / "adapter_config.json").write_text(json.dumps(values))

    def rename(tensors):
        for name in list(tensors):
            old = name.replace("output.adapters", "output.layer_text_task_adapters")
            tensors[old] = tensors.pop(name)

    change_tensors(folder, rename, "adapter.safetensors")
    again = load_module(folder)
    assert again.config.activation == "gelu_new"
    assert_same_leaves(again, module(CONFIGS["houlsby"]))
