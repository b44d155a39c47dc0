import json

import jax
import numpy as np
import pytest
import yaml

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.systems import finetune
from fusion_jax.systems.folders import finetune_on_folder
from fusion_jax.systems.saved_model import evaluate
from fusion_jax.systems.workdir import ConfigChanged
from tests.small_models import LABELS, write_model, write_task


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("finetune")
    return write_model(root / "encoder"), write_task(root / "opinion")


@pytest.fixture
def make_config(folders):
    def make(**fit):
        encoder, task = folders
        config = finetune_on_folder(task)
        config.encoder = str(encoder)
        config.max_length = 16
        config.fit.update({"epochs": 2, "head_epochs": 1, "batch_size": 4, **fit})
        return config

    return make


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    encoder, task = folders
    config = finetune_on_folder(task)
    config.encoder = str(encoder)
    config.max_length = 16
    config.fit.update({"epochs": 2, "head_epochs": 1, "batch_size": 4})
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return finetune.run(config, workdir, progress=False)


def test_results_hold_what_every_system_writes(finished):
    written = json.loads((finished.workdir / "results.json").read_text())
    assert written == finished.results
    assert written["system"] == "finetune" and written["target"] == "opinion"
    assert written["metric"] == "accuracy + f1_macro" and written["seed"] == 0
    assert written["coefficients"] is None and written["experts"] is None
    scores = written["methods"]["finetune"]
    low, high = scores["test_interval"]
    assert 0 <= low <= scores["test"] <= high <= 1
    assert scores["dev"] == pytest.approx(
        np.mean(list(written["metrics"]["dev"].values()))
    )
    assert written["rows"] == {"train": 12, "dev": 8, "test": 8}
    assert set(written["seconds"]) == {"data", "train", "score"}
    assert {"fusion_jax", "jax", "device"} <= set(written["versions"])
    assert written["config"] == json.loads(
        (finished.workdir / "config.json").read_text()
    )
    assert (finished.workdir / "metrics.jsonl").is_file()


def test_the_model_opens_again_with_equal_parameters_labels_and_card(finished):
    model = hf.load(finished.workdir / "model")
    assert model.kind == "single_label" and model.labels == LABELS
    assert hf.hash_params(model.params) == hf.hash_params(finished.params)
    card = (finished.workdir / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "text-classification"
    assert "opinion" in card and hf.hash_params(model.params) in card


def test_the_saved_model_scores_on_the_folder_what_the_run_reports(finished, folders):
    record = evaluate(finished.workdir / "model", folders[1], max_length=16)
    scores = finished.results["methods"]["finetune"]
    assert record["score"] == pytest.approx(scores["test"], abs=1e-12)
    assert record["interval"] == pytest.approx(scores["test_interval"], abs=1e-12)


def test_the_report_is_one_page_about_this_run(finished):
    page = (finished.workdir / "report.html").read_text()
    assert "fine-tune on opinion" in page
    assert "<script src" not in page and "<link" not in page


def test_what_is_frozen_is_the_encoders(finished, folders):
    start = trees.flatten(hf.load(folders[0]).params)
    found = trees.flatten(finished.params)
    word = "encoder/embeddings/word/embedding"
    kernel = "encoder/layer_0/attention/query/kernel"
    np.testing.assert_array_equal(found[word], start[word])
    assert not np.array_equal(found[kernel], start[kernel])


def test_a_finished_run_is_read_and_not_run_again(finished, make_config):
    before = (finished.workdir / "metrics.jsonl").stat().st_mtime_ns
    again = finetune.run(make_config(), finished.workdir, progress=False)
    assert again.results == finished.results
    assert hf.hash_params(again.params) == hf.hash_params(finished.params)
    assert (finished.workdir / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_run_that_lost_its_end_goes_on_to_the_same_model(finished, make_config):
    kept = json.loads((finished.workdir / "results.json").read_text())
    lines = (finished.workdir / "metrics.jsonl").read_text()
    (finished.workdir / "results.json").unlink()
    again = finetune.run(make_config(), finished.workdir, progress=False)
    assert hf.hash_params(again.params) == hf.hash_params(finished.params)
    assert again.results["methods"] == kept["methods"]
    assert again.results["best_epoch"] == kept["best_epoch"]
    assert (finished.workdir / "metrics.jsonl").read_text() == lines


def test_another_config_is_refused_with_what_differs(finished, make_config):
    config = make_config(epochs=3)
    config.max_length = 20
    with pytest.raises(ConfigChanged) as refused:
        finetune.run(config, finished.workdir, progress=False)
    assert "config.fit.epochs: 2 there, 3 asked for" in str(refused.value)
    assert "config.max_length: 16 there, 20 asked for" in str(refused.value)


def test_overwriting_trains_by_the_new_config(make_config, tmp_path):
    first = finetune.run(make_config(epochs=1, head_epochs=0), tmp_path, progress=False)
    config = make_config(epochs=1, head_epochs=0, learning_rate=1e-2)
    second = finetune.run(config, tmp_path, overwrite=True, progress=False)
    assert second.results["config"]["fit"]["learning_rate"] == 1e-2
    assert hf.hash_params(second.params) != hf.hash_params(first.params)
    saved = hf.load(tmp_path / "model").params
    jax.tree.map(np.testing.assert_array_equal, saved, dict(second.params))


def test_a_task_without_test_reports_dev_alone(make_config, tmp_path):
    config = make_config(epochs=1, head_epochs=0)
    write_task(tmp_path / "untested", test=False)
    config.data.path, config.target = str(tmp_path), "untested"
    results = finetune.run(config, tmp_path / "run", progress=False).results
    scores = results["methods"]["finetune"]
    assert scores["dev"] is not None
    assert scores["test"] is None and scores["test_interval"] is None
    assert results["metrics"]["test"] is None


def test_several_tasks_and_no_target_is_refused(make_config, tmp_path):
    config = make_config()
    config.data.path, config.target = str(tmp_path / "tasks"), ""
    write_task(tmp_path / "tasks" / "one")
    write_task(tmp_path / "tasks" / "two")
    with pytest.raises(ValueError, match="one, two; name one of them"):
        finetune.run(config, tmp_path / "run", progress=False)
