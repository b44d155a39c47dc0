"""DFWE over modules: the host stays as it is, the answer is a module and a model."""

import json

import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.module_file import about_host, load_module, save_module
from fusion_jax.checkpoints.tensors import read_file
from fusion_jax.peft import merge_into
from fusion_jax.reports.methods import METHODS
from fusion_jax.systems import dfwe
from fusion_jax.systems.defaults import dfwe_config
from fusion_jax.systems.dfwe_modules import given_modules
from tests.small_models import write_model, write_task


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two task folders and an encoder."""
    root = tmp_path_factory.mktemp("dfwe_modules")
    write_model(root / "encoder")
    for name in ("film", "play"):
        write_task(root / "tasks" / name)
    return root


def make_config(place, **peft):
    config = dfwe_config()
    config.encoder = str(place / "encoder")
    config.data = {"reader": "folders", "path": str(place / "tasks")}
    config.targets = ("film",)
    config.max_length = 16
    config.search.budget = 12
    config.plane = 0
    config.comparators = ("random_search",)
    for stage in (config.source, config.target):
        stage.update({"epochs": 1, "batch_size": 4, "learning_rate": 1e-2})
    config.peft.update({"kind": "lora", "rank": 2, **peft})
    return config


@pytest.fixture(scope="module")
def finished(place):
    return dfwe.run(make_config(place), place / "run")


def test_every_method_of_points_has_scores_and_the_joint_model_is_null(finished):
    methods = finished.results["methods"]
    assert set(methods) == set(METHODS)
    assert methods["multitask_finetune"]["dev"] is None
    assert 0 <= methods["dfwe"]["test"] <= 1
    assert set(finished.results["experts"]) == {"direct", "play"}


def test_no_expert_has_changed_the_host(finished, place):
    host = trees.flatten(hf.load(place / "encoder").params)
    files = list((place / "run" / "experts").glob("*.safetensors"))
    assert len([f for f in files if "from" in f.name]) == 2
    for file in files:
        leaves = read_file(file)
        assert any(name.endswith("/lora/b") for name in leaves)
        for name, leaf in host.items():
            np.testing.assert_array_equal(leaves[name], leaf, err_msg=name)


def test_the_model_is_the_encoder_with_the_module_in_it(finished, place):
    module = load_module(finished.workdir / "module")
    saved = hf.load(finished.workdir / "model", kind="single_label").params
    host = {**hf.load(place / "encoder").params, "head": module.params["head"]}
    assert module.host["sha256"]
    expected = trees.flatten(merge_into(host, module))
    for name, leaf in trees.flatten(saved).items():
        np.testing.assert_allclose(leaf, expected[name], atol=1e-6, err_msg=name)


def test_the_chosen_module_is_the_exact_sum_of_the_experts_updates(finished, place):
    host = trees.flatten(hf.load(place / "encoder").params)
    saved = trees.flatten(hf.load(finished.workdir / "model").params)
    kernel = "encoder/layer_0/attention/query"
    total = np.asarray(host[f"{kernel}/kernel"], np.float64)
    for name, weight in finished.results["coefficients"].items():
        [file] = (place / "run" / "experts").glob(f"film-from-{name}-*.safetensors")
        own = {n: np.asarray(x, np.float64) for n, x in read_file(file).items()}
        # alpha 8 over rank 2
        update = 4 * own[f"{kernel}/lora/a"] @ own[f"{kernel}/lora/b"]
        total = total + weight * update
    np.testing.assert_allclose(saved[f"{kernel}/kernel"], total, atol=1e-6)


@pytest.mark.filterwarnings("error::fusion_jax.checkpoints.module_file.OtherHost")
def test_modules_that_exist_are_searched_without_training(finished, place):
    module = load_module(finished.workdir / "module")
    config = make_config(place)
    other = module._replace(
        params=trees.map_with_names(lambda _, x: x * 1.1, module.params)
    )
    config.experts = tuple(
        str(save_module(place / name, one))
        for name, one in (("ours", module), ("theirs", other))
    )
    config.search.with_base = True
    found = dfwe.run(config, place / "given")
    assert set(found.results["coefficients"]) == {"ours", "theirs", "pretrained"}
    assert not list((place / "given").rglob("film-from-*"))


@pytest.mark.filterwarnings("error::fusion_jax.checkpoints.module_file.OtherHost")
def test_a_pooler_drawn_beside_the_encoder_makes_no_other_host(finished, place):
    encoder = hf.load(place / "encoder")
    own = {n: x for n, x in encoder.params["encoder"].items() if n != "pooler"}
    bare = encoder._replace(params={"encoder": own})
    module = load_module(finished.workdir / "module")
    module = module._replace(host=about_host(bare, "bare"))
    folder = save_module(place / "of_bare", module)
    start = {**encoder.params, "head": module.params["head"]}
    found = given_modules([str(folder)], start, module.config, bare)
    assert found["of_bare"].host == module.host


def test_scaling_vectors_are_interpolated_as_leaves(place):
    config = make_config(place, kind="ia3")
    config.peft.rank = 8
    found = dfwe.run(config, place / "scales")
    assert json.loads((place / "scales" / "module" / "module.json").read_text())
    assert 0 <= found.results["methods"]["dfwe"]["dev"] <= 1


@pytest.mark.parametrize("peft", [{"kind": "adapter"}, {"init": "pissa"}])
def test_kinds_that_leave_no_merged_model_are_refused(place, peft):
    config = make_config(place, **peft)
    if peft.get("kind"):
        config.peft.rank = 8
    with pytest.raises(ValueError, match=r"peft: modules of .* a run leaves a merged"):
        dfwe.run(config, place / "refused")
