"""A module is read as it was written, in every form that has its kind."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from fusion_jax import trees
from fusion_jax.checkpoints.modules import (
    FORMS,
    check_host,
    form_of,
    load_module,
    save_module,
)
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.peft import PeftConfig, attach, with_module
from fusion_jax.peft.portable import flat_prefix
from tests.checkpoints.modules.files import (
    assert_same_leaves,
    change_config,
    host,
    leaves,
    module,
)
from tests.peft.hosts import CONFIGS, batch_of, model_of

PAIRS = [
    (form, name)
    for form, record in FORMS.items()
    for name, config in CONFIGS.items()
    if not record.kinds or config.kind in record.kinds
    if not (form == "peft" and name == "prefix_mlp")
]


def written(form, name):
    """What a form can hold: torch peft moves the text behind a prefix."""
    config = CONFIGS[name]
    if form == "peft" and config.kind == "prefix":
        config = replace(config, shift_positions=True)
    return module(config)


def logits(one, family="bert"):
    given = host(family)
    model = attach(model_of(family), one.config)
    params = with_module(given.params, one.params)
    # Without jit: a config that was read is another one, and compiles anew.
    return np.asarray(model.apply(params, batch_of())["logits"])


@pytest.mark.parametrize(("form", "name"), PAIRS)
def test_what_is_written_is_read_again(tmp_path, form, name):
    one = written(form, name)
    folder = save_module(tmp_path / "out", one, form=form)
    assert form_of(folder) == form
    again = load_module(folder, host=host(), strict_host=True)
    assert_same_leaves(again, one)
    assert again.host == one.host
    # The leaves are the same bits; another config may say them in other words.
    if again.config != one.config:
        np.testing.assert_allclose(logits(again), logits(one), atol=1e-5)
    # And once more: nothing is added or lost on the way.
    twice = load_module(save_module(tmp_path / "twice", again, form=form))
    assert_same_leaves(twice, one)
    assert twice.config == again.config


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gpt2"])
@pytest.mark.parametrize("name", ["patterns", "ia3", "prompt", "houlsby"])
def test_every_family_has_its_names(tmp_path, family, name):
    config = CONFIGS[name]
    if name == "patterns" and family == "gpt2":
        config = replace(config, targets=("qkv", "mlp/up", "embeddings/word"))
    one = module(config, family)
    form = "adapterhub" if name == "houlsby" else "peft"
    folder = save_module(tmp_path / "out", one, form=form)
    again = load_module(folder, host=host(family), strict_host=True)
    assert_same_leaves(again, one)
    np.testing.assert_allclose(logits(again, family), logits(one, family), atol=1e-5)


def test_files_are_as_peft_writes_them(tmp_path):
    one = module(CONFIGS["patterns"])
    folder = save_module(tmp_path / "out", one, form="peft")
    text = (folder / "adapter_config.json").read_text()
    values = json.loads(text)
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert values["target_modules"] == [
        "intermediate.dense",
        "query",
        "value",
        "word_embeddings",
    ]
    assert values["rank_pattern"] == {
        "encoder.layer.0.intermediate.dense": 3,
        "encoder.layer.1.intermediate.dense": 3,
        "encoder.layer.1.attention.self.query": 1,
        "encoder.layer.1.attention.self.value": 1,
    }
    with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
        before = "base_model.model.bert.encoder.layer.0.attention.self.query.lora"
        a = file.get_tensor(f"{before}_A.weight")
        b = file.get_tensor(f"{before}_B.weight")
    own = leaves(one)
    path = "encoder/layer_0/attention/query/lora"
    # Transposed and nothing else: no scaling is folded in.
    np.testing.assert_array_equal(a, own[f"{path}/a"].T)
    np.testing.assert_array_equal(b, own[f"{path}/b"].T)
    assert "base_model.model.bert.embeddings.word_embeddings.lora_embedding_A" in names


def test_a_host_without_a_head_has_no_base_name(tmp_path):
    folder = save_module(
        tmp_path / "out", module(CONFIGS["lora"]), form="peft", bare=True
    )
    with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
        assert all(n.startswith("base_model.model.encoder.") for n in file.keys())
    assert_same_leaves(load_module(folder), module(CONFIGS["lora"]))


def test_files_of_adapterhub(tmp_path):
    for name, place in (
        ("houlsby", "double"),
        ("pfeiffer", "seq"),
        ("parallel", "par"),
    ):
        folder = save_module(tmp_path / name, module(CONFIGS[name]), form="adapterhub")
        values = json.loads((folder / "adapter_config.json").read_text())
        own = values["config"]
        assert (values["model_type"], values["hidden_size"]) == ("bert", 16)
        assert own["mh_adapter"] == (place == "double")
        assert own["original_ln_before"] == (place == "seq")
        assert own["is_parallel"] == (place == "par")
        assert own["scaling"] == (4.0 if place == "par" else 1.0)
        with safe_open(folder / "adapter.safetensors", "numpy") as file:
            names = set(file.keys())
        base = "bert.encoder.layer.1.output.adapters.default"
        assert f"{base}.adapter_down.0.weight" in names
        assert f"{base}.adapter_up.bias" in names


@pytest.mark.parametrize(
    ("form", "name", "said"),
    [
        ("peft", "houlsby", "peft has no adapter"),
        ("peft", "prefix", "trained with shift_positions"),
        ("peft", "bitfit", "peft has no bitfit"),
        ("peft", "pissa", "PiSSA changed its host"),
        ("adapterhub", "lora", "for adapters, not lora"),
        ("adapterhub", "compacter", "for adapters, not compacter"),
    ],
)
def test_a_form_refuses_what_it_cannot_hold(tmp_path, form, name, said):
    configs = CONFIGS | {"pissa": PeftConfig(rank=2, init="pissa")}
    with pytest.raises(CheckpointError, match=said):
        save_module(tmp_path / "out", module(configs[name]), form=form)
    assert not (tmp_path / "out").exists()


def test_a_prefix_with_its_network_is_made_flat_first(tmp_path):
    one = module(replace(CONFIGS["prefix_mlp"], shift_positions=True))
    with pytest.raises(CheckpointError, match="flat_prefix"):
        save_module(tmp_path / "out", one, form="peft")
    again = load_module(save_module(tmp_path / "out", flat_prefix(one), form="peft"))
    np.testing.assert_allclose(logits(again), logits(one), atol=1e-5)


def test_adapters_of_decoders_read_another_stream_there(tmp_path):
    with pytest.raises(CheckpointError, match="residual stream"):
        save_module(
            tmp_path / "out", module(CONFIGS["parallel"], "gpt2"), form="adapterhub"
        )
    # After the feed-forward itself both mean the same.
    folder = save_module(
        tmp_path / "out", module(CONFIGS["pfeiffer"], "gpt2"), form="adapterhub"
    )
    change_config(
        folder,
        config=json.loads((folder / "adapter_config.json").read_text())["config"]
        | {"original_ln_before": True},
    )
    with pytest.raises(CheckpointError, match="whose norms come first"):
        load_module(folder)


def test_another_host_of_the_same_shape_is_told(tmp_path):
    folder = save_module(tmp_path / "out", module(CONFIGS["lora"]), form="peft")
    other = host()
    other = other._replace(about={**other.about, "sha256": "0" * 64, "name": "other"})
    with pytest.warns(UserWarning, match=r"made for the host tiny-bert"):
        load_module(folder, host=other)
    with pytest.raises(CheckpointError, match="strict-host"):
        load_module(folder, host=other, strict_host=True)
    # A folder that does not say is silent, and not good enough to be strict about.
    (folder / "fusion_jax.json").unlink()
    load_module(folder, host=other)
    with pytest.raises(CheckpointError, match="does not say which host"):
        load_module(folder, host=other, strict_host=True)


def test_another_architecture_is_refused(tmp_path):
    folder = save_module(tmp_path / "out", module(CONFIGS["lora"]))
    with pytest.raises(CheckpointError, match="its host had family bert, this one has"):
        load_module(folder, host=host("gpt2"))
    one = load_module(folder)._replace(host={})
    with pytest.raises(CheckpointError, match=r"query/lora/a: not in a module of this"):
        check_host(one, host("gpt2"))
    path = "encoder/layer_0/attention/query/lora/a"
    wide = leaves(one) | {path: np.zeros((17, 2), np.float32)}
    one = one._replace(params=trees.unflatten(wide))
    with pytest.raises(
        CheckpointError, match=rf"{path}: shape \(17, 2\), \(16, 2\) in"
    ):
        check_host(one, host())


def test_a_folder_of_no_module_says_where_it_may_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_module(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no module"):
        load_module(tmp_path)
    save_module(tmp_path / "mine", module(CONFIGS["lora"]), form="peft")
    with pytest.raises(CheckpointError, match="it is in mine: name one"):
        load_module(tmp_path)


def test_our_own_form_is_strict_too(tmp_path):
    folder = save_module(tmp_path / "out", module(CONFIGS["lora"]))
    change_config(folder, "module.json", config={"kind": "lora", "rnk": 3})
    with pytest.raises(CheckpointError, match="no rnk"):
        load_module(folder)
    change_config(folder, "module.json", config={"kind": "ia3"})
    with pytest.raises(CheckpointError, match="lora/a: no leaf of a ia3 module"):
        load_module(folder)
    change_config(folder, "module.json", schema=2)
    with pytest.raises(CheckpointError, match="schema 2"):
        load_module(folder)
