"""Modules that others trained, and hosts that no table knows: read, merged, written."""

import os
from pathlib import Path

import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints.modules import load_module, module_of_tensors, save_module
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.peft.combine import combine
from fusion_jax.peft.low_rank import updates_of
from tests.checkpoints.modules.files import assert_same_leaves, leaves

ROOT = Path(__file__).resolve().parents[3]
MNLI = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["query", "value"],
    "modules_to_save": ["classifier"],
}
T_FEW = {
    "peft_type": "IA3",
    "target_modules": ["k", "v", "wi_1"],
    "feedforward_modules": [],
}


def arrays(name):
    """Those of the folder that FUSION_JAX_WEIGHTS names, or ../shared/weights."""
    named = os.environ.get("FUSION_JAX_WEIGHTS")
    folder = Path(named) if named else ROOT.parent / "shared" / "weights"
    file = folder / name / "module.npz"
    if not file.is_file():
        pytest.skip(f"no {name}/module.npz: set FUSION_JAX_WEIGHTS to a folder with it")
    with np.load(file, allow_pickle=False) as held:
        return {key: held[key] for key in held.files}


def test_a_lora_of_roberta_by_its_authors_names(tmp_path):
    tensors = arrays("roberta_base_lora_mnli")
    one = module_of_tensors(MNLI, tensors)
    assert one.host == {"family": "roberta", "hidden_size": 768, "num_layers": 12}
    assert trees.num_params(one.params) == 887_811
    own = leaves(one)
    name = "roberta.encoder.layer.11.attention.self.value.lora_B"
    np.testing.assert_array_equal(
        own["encoder/layer_11/attention/value/lora/b"], tensors[name].T
    )
    np.testing.assert_array_equal(
        own["head/classifier/kernel"], tensors["classifier.out_proj.weight"].T
    )
    folder = save_module(tmp_path / "out", one, form="peft")
    assert_same_leaves(load_module(folder), one)
    # Its update is its own factors' product, with alpha / r = 2.
    update = updates_of(one)["encoder/layer_0/attention/query"]
    name = "roberta.encoder.layer.0.attention.self.query.lora"
    a, b = (tensors[f"{name}_{part}"].astype(np.float64) for part in "AB")
    np.testing.assert_allclose(update.a @ update.b, 2 * (b @ a).T, atol=1e-14)


def test_merges_of_a_real_lora():
    one = module_of_tensors(MNLI, arrays("roberta_base_lora_mnli"))
    assert combine("ties", [one, one], [1, 0]).module is one
    # Twice itself by halves is itself, whatever rank the sum is given.
    half = combine("svd", [one, one], [0.5, 0.5])
    assert max(half.lost.values()) < 1e-6
    before, after = updates_of(one), updates_of(half.module)
    for path, update in before.items():
        found = after[path].a @ after[path].b
        expected = update.a @ update.b
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 1e-6, path
    # How fast its singular values fall is what a cut costs.
    cut = combine("svd", [one, one], [0.5, 0.5], rank=4)
    assert all(0 < error < 0.7 for error in cut.lost.values())


def test_scales_of_t0_by_their_authors_names(tmp_path):
    tensors = arrays("tfew_t03b_ia3")
    one = module_of_tensors(T_FEW, tensors)
    assert trees.num_params(one.params) == 540_672
    own = leaves(one)
    name = "decoder.block.23.layer.1.EncDecAttention.k.multi_lora_b"
    np.testing.assert_array_equal(
        own["decoder/block/23/layer/1/EncDecAttention/k/ia3/scale"], tensors[name][:, 0]
    )
    folder = save_module(tmp_path / "out", one, form="peft", family="")
    assert_same_leaves(load_module(folder), one)
    none = one._replace(params=trees.map_with_names(lambda _, x: 0 * x + 1, one.params))
    merged = leaves(combine("linear", [one, none], [0.5, 0.5]).module)
    for leaf, value in own.items():
        np.testing.assert_allclose(merged[leaf], (value + 1) / 2, atol=1e-6)
    sparse = combine("ties", [one, none], [0.5, 0.5], density=0.1).module
    for leaf, value in leaves(sparse).items():
        kept = np.abs(value - 1) > 0
        assert kept.sum() <= np.ceil(0.1 * value.size)
        np.testing.assert_allclose(value[kept], own[leaf][kept], atol=1e-5)


def test_the_folder_of_real_modules_is_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_JAX_WEIGHTS", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="set FUSION_JAX_WEIGHTS"):
        arrays("one")
    (tmp_path / "one").mkdir()
    np.savez(tmp_path / "one" / "module.npz", w=np.arange(3))
    np.testing.assert_array_equal(arrays("one")["w"], [0, 1, 2])


def t5_lora(seed, rank=2):
    """A LoRA of two blocks of T5 as torch peft names it."""
    random = np.random.default_rng(seed)
    tensors = {}
    for block in range(2):
        for part in ("q", "v"):
            path = f"encoder.block.{block}.layer.0.SelfAttention.{part}"
            before = f"base_model.model.{path}"
            tensors[f"{before}.lora_A.weight"] = random.normal(size=(rank, 8))
            tensors[f"{before}.lora_B.weight"] = random.normal(size=(6, rank))
    values = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "r": rank,
        "lora_alpha": 6,
        "target_modules": ["q", "v"],
    }
    return values, {name: x.astype(np.float32) for name, x in tensors.items()}


def test_hosts_of_no_table_keep_their_torch_paths(tmp_path):
    one = module_of_tensors(*t5_lora(1))
    path = "encoder/block/1/layer/0/SelfAttention/v"
    assert one.host == {} and f"{path}/lora/a" in leaves(one)
    folder = save_module(tmp_path / "out", one, form="peft")
    assert_same_leaves(load_module(folder), one)
    other = module_of_tensors(*t5_lora(2, rank=3))
    merged = combine("concatenate", [one, other], [1.0, -0.5]).module
    found = updates_of(load_module(save_module(tmp_path / "m", merged, form="peft")))
    first, second = updates_of(one)[path], updates_of(other)[path]
    np.testing.assert_allclose(
        found[path].a @ found[path].b,
        first.a @ first.b - 0.5 * second.a @ second.b,
        atol=1e-5,
    )


def test_our_names_need_a_family_to_be_written(tmp_path):
    one = module_of_tensors(MNLI | {"modules_to_save": None}, roberta_names())
    assert "family" not in one.host  # BERT and RoBERTa are called alike
    with pytest.raises(
        CheckpointError, match="the host's family is not known: name it"
    ):
        save_module(tmp_path / "out", one, form="peft")
    folder = save_module(tmp_path / "out", one, form="peft", family="roberta")
    assert_same_leaves(load_module(folder), one)


def roberta_names():
    """Of a bare encoder, without a base model's name."""
    random = np.random.default_rng(0)
    paths = [f"encoder.layer.0.attention.self.{part}" for part in ("query", "value")]
    shapes = {"A": (8, 16), "B": (16, 8)}
    return {
        f"base_model.model.{path}.lora_{part}.weight": random.normal(size=shape)
        for path in paths
        for part, shape in shapes.items()
    }
