"""A fine-tune whose encoder is frozen: the module, the merged model, the record."""

import json

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.module_file import host_hash, load_module
from fusion_jax.models import build_model
from fusion_jax.peft import attach, merge_into, with_module
from fusion_jax.systems import finetune
from fusion_jax.systems.folders import finetune_on_folder
from fusion_jax.systems.saved_model import evaluate
from tests.small_models import write_model, write_task


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("module")
    return write_model(root / "encoder"), write_task(root / "opinion")


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    def start(workdir=None, **peft):
        encoder, task = folders
        config = finetune_on_folder(task)
        config.encoder = str(encoder)
        config.max_length = 16
        fit = {"epochs": 1, "head_epochs": 0, "batch_size": 4, "learning_rate": 1e-2}
        config.fit.update(fit | {"dropout": "dropout" in peft})
        config.peft.update(peft)
        workdir = workdir or tmp_path_factory.mktemp("run") / peft["kind"]
        return finetune.run(config, workdir, progress=False)

    return start


@pytest.fixture(scope="module")
def lora(run):
    return run(kind="lora", rank=2, dropout=0.1)


def test_a_lora_run_leaves_a_module_a_merged_model_and_their_record(lora, folders):
    encoder = hf.load(folders[0])
    module = load_module(lora.workdir / "module", host=encoder.params, strict_host=True)
    about = lora.results["module"]
    assert about["kind"] == "lora" and about["merged"]
    assert about["parameters"] == trees.num_params(module.params)
    assert about["host"]["sha256"] == host_hash(encoder.params)
    assert about["host"]["family"] == "bert" and about["host"]["hidden_size"] == 16
    names = set(trees.flatten(module.params))
    assert {name for name in names if "/lora/" not in name} == {
        "head/classifier/kernel",
        "head/classifier/bias",
    }
    saved = hf.load(lora.workdir / "model").params
    merged = trees.flatten(merge_into(encoder.params, module))
    for name, leaf in trees.flatten(saved).items():
        np.testing.assert_array_equal(leaf, merged[name], err_msg=name)
    assert json.loads((lora.workdir / "results.json").read_text()) == lora.results


def test_all_but_the_targets_and_the_head_are_the_encoders_bit_for_bit(lora, folders):
    start = trees.flatten(hf.load(folders[0]).params)
    found = trees.flatten(lora.params)
    changed = {name for name in start if not np.array_equal(start[name], found[name])}
    assert changed == {
        f"encoder/layer_{i}/attention/{name}/kernel"
        for i in range(2)
        for name in ("query", "value")
    }


def test_the_merged_model_scores_what_the_run_reports(lora, folders):
    record = evaluate(lora.workdir / "model", folders[1], max_length=16)
    scores = lora.results["methods"]["finetune"]
    assert record["score"] == pytest.approx(scores["test"], abs=1e-12)


def test_a_finished_run_is_read_again(lora, run):
    again = run(workdir=lora.workdir, kind="lora", rank=2, dropout=0.1)
    assert again.results == lora.results
    assert hf.hash_params(again.params) == hf.hash_params(lora.params)


def test_a_module_that_cannot_be_merged_says_so_and_leaves_no_model(run):
    first = run(kind="adapter", place="pfeiffer", bottleneck=4)
    about = first.results["module"]
    assert not about["merged"] and "activation" in about["why_not_merged"]
    assert not (first.workdir / "model").exists()
    again = run(workdir=first.workdir, kind="adapter", place="pfeiffer", bottleneck=4)
    assert hf.hash_params(again.params) == hf.hash_params(first.params)


def test_what_is_kept_of_pissa_and_of_a_network_is_for_the_host_as_it_was(run, folders):
    encoder = hf.load(folders[0]).params
    pissa = run(kind="lora", rank=2, init="pissa")
    module = load_module(pissa.workdir / "module", host=encoder, strict_host=True)
    assert module.config.rank == 4 and module.config.init == "default"
    prefix = run(kind="prefix", length=2, mlp_width=4)
    module = load_module(prefix.workdir / "module", host=encoder, strict_host=True)
    rows = [name for name in trees.flatten(module.params) if name.endswith("/rows")]
    assert len(rows) == 4 and module.config.mlp_width == 0
    model = attach(
        build_model(hf.load(folders[0]).config, "single_label", 2), module.config
    )
    batch = {
        "input_ids": np.full((1, 4), 7, np.int32),
        "attention_mask": np.ones((1, 4), np.int32),
    }
    outputs = jax.eval_shape(model.apply, with_module(encoder, module.params), batch)
    assert outputs["logits"].shape == (1, 2)


def test_a_dropout_that_would_not_be_read_is_refused(folders, tmp_path):
    config = finetune_on_folder(folders[1])
    config.encoder = str(folders[0])
    config.peft.update({"kind": "lora", "dropout": 0.1})
    with pytest.raises(ValueError, match=r"set fit\.dropout=True"):
        finetune.run(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
