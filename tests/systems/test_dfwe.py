"""DFWE as a whole, on a tiny encoder and hand-written task folders."""

import json

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data import load_task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.reports.methods import METHODS
from fusion_jax.search.points import make_points
from fusion_jax.systems import dfwe
from fusion_jax.systems.candidates import make_scorer
from fusion_jax.systems.defaults import dfwe_config
from fusion_jax.systems.given import given_experts
from fusion_jax.systems.problem import make_problem, starting_params
from fusion_jax.systems.workdir import ConfigChanged
from tests.small_models import LABELS, write_model, write_task

TASKS = ("film", "play", "song")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three task folders and an encoder."""
    root = tmp_path_factory.mktemp("dfwe")
    write_model(root / "encoder")
    for name in TASKS:
        write_task(root / "tasks" / name)
    return root


def make_config(place, **changes):
    config = dfwe_config()
    config.encoder = str(place / "encoder")
    config.data = {"reader": "folders", "path": str(place / "tasks")}
    config.targets = ("film",)
    config.max_length = 16
    config.search.budget = 24
    config.plane = 3
    for stage in (config.source, config.target, config.multitask):
        stage.update({"epochs": 1, "batch_size": 4, "learning_rate": 1e-2})
    config.target.head_epochs = 1
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(place):
    """One run, and its folder."""
    return dfwe.run(make_config(place), place / "run")


def test_the_record_holds_every_method_with_scores_in_range(finished):
    results = json.loads((finished.workdir / "results.json").read_text())
    assert results == finished.results
    assert set(results["methods"]) == set(METHODS)
    for name, entry in results["methods"].items():
        assert 0 <= entry["dev"] <= 1, name
        low, high = entry["test_interval"]
        assert low - 1e-9 <= entry["test"] <= high + 1e-9, name
    assert results["target"] == "film"
    assert results["candidates"] <= 24
    assert set(results["experts"]) == {"direct", "play", "song"}
    assert sum(results["coefficients"].values()) == pytest.approx(1, abs=1e-5)
    assert (finished.workdir / "report.html").stat().st_size > 10_000


def test_the_saved_model_is_the_weighted_average_of_the_saved_experts(finished, place):
    saved = hf.load(finished.workdir / "model", kind="single_label")
    assert saved.labels == LABELS
    total = None
    for name, weight in finished.results["coefficients"].items():
        [file] = (place / "run" / "experts").glob(f"film-from-{name}-*.safetensors")
        leaves = {
            leaf: weight * np.asarray(x, np.float64)
            for leaf, x in hf_leaves(file).items()
        }
        total = leaves if total is None else {k: total[k] + leaves[k] for k in total}
    for leaf, x in trees.flatten(saved.params).items():
        np.testing.assert_allclose(x, total[leaf], rtol=1e-5, atol=1e-6, err_msg=leaf)


def hf_leaves(file):
    from fusion_jax.checkpoints.tensors import read_file

    return read_file(file)


def test_experts_start_from_one_head_and_share_the_frozen_tables(finished, place):
    base = hf.load(place / "encoder").params
    for file in (place / "run" / "experts").glob("film-from-*.safetensors"):
        leaves = hf_leaves(file)
        name = "encoder/embeddings/word/embedding"
        np.testing.assert_array_equal(leaves[name], trees.flatten(base)[name])


def test_dfwe_is_not_clearly_below_the_soup_or_an_expert_on_dev(finished):
    advantages = finished.results["answer"]["advantage_over_mean"]
    chosen = finished.results["answer"]["chosen"]
    gain = advantages.get(chosen, {"difference": 0.0})["difference"]
    for name, found in advantages.items():
        assert found["difference"] - gain <= found["standard_error"] + 1e-12, name


def test_a_second_run_trains_nothing_and_says_the_same(finished, place):
    files = {f: f.stat().st_mtime_ns for f in (place / "run").rglob("*.safetensors")}
    again = dfwe.run(make_config(place), place / "run")
    assert again.results == finished.results
    assert files == {
        f: f.stat().st_mtime_ns for f in (place / "run").rglob("*.safetensors")
    }


def test_a_run_that_lost_its_results_finds_its_experts_and_its_search(finished, place):
    import shutil

    copy = place / "copy"
    shutil.copytree(place / "run", copy)
    (copy / "results.json").unlink()
    again = dfwe.run(make_config(place), copy)
    assert again.results["coefficients"] == finished.results["coefficients"]
    assert again.results["methods"] == finished.results["methods"]


def test_a_changed_config_is_refused_with_the_differences(finished, place):
    config = make_config(place)
    config.search.budget = 30
    with pytest.raises(ConfigChanged, match=r"search\.budget: 24 there, 30 asked for"):
        dfwe.run(config, place / "run")


def test_the_model_runs_on_text(finished):
    model = hf.load(finished.workdir / "model")
    assert model.kind == "single_label"
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(model.params))


def test_several_targets_and_seeds_give_a_summary(place):
    config = make_config(place, targets=("film", "song"), seeds=2)
    config.comparators = ("greedy_soup",)
    config.plane = 0
    total = dfwe.run(config, place / "many")
    assert len(total.results["runs"]) == 4
    assert total.results["summary"]["targets"] == ["film", "song"]
    assert total.results["summary"]["seeds"] == [0, 1]
    for target in ("film", "song"):
        for seed in (0, 1):
            folder = place / "many" / target / f"seed_{seed}"
            assert (folder / "results.json").is_file()
            assert (folder / "model" / "config.json").is_file()
    left_out = total.results["runs"][0]["methods"]["logit_ensemble"]
    assert left_out == {"dev": None, "test": None, "test_interval": None}


@pytest.mark.parametrize("space", ["affine", "free", "box"])
def test_other_spaces_and_groups_run(place, space):
    config = make_config(place)
    config.search.space = space
    config.search.budget = 40
    config.search.groups = (("head/.*", 1), (".*", 0))
    config.search.race = True
    config.comparators = ()
    config.plane = 0
    result = dfwe.run(config, place / f"space_{space}")
    rows = result.results["coefficients"]
    assert set(rows) == {"group_0", "group_1"}
    for row in rows.values():
        assert sum(row.values()) == pytest.approx(1, abs=1e-4)
        assert ("pretrained" in row) == (space != "affine")


def test_experts_that_exist_are_merged_without_training(place):
    for k in range(3):
        write_model(place / f"expert_{k}", kind="single_label", labels=LABELS, seed=k)
    config = make_config(place)
    config.experts = tuple(str(place / f"expert_{k}") for k in range(3))
    # Only the target is read: what lies beside it may be no task.
    write_task(place / "alone" / "film")
    (place / "alone" / "notes").mkdir()
    config.data.path = str(place / "alone")
    result = dfwe.run(config, place / "given")
    assert set(result.results["experts"]) == {"expert_0", "expert_1", "expert_2"}
    assert result.results["methods"]["direct_finetune"]["dev"] is None
    assert not (place / "given" / "experts").exists()


def test_experts_of_other_labels_or_structure_are_named(place):
    write_model(place / "odd", kind="single_label", labels=("no", "yes"))
    config = make_config(place)
    config.experts = (str(place / "expert_0"), str(place / "odd"))
    with pytest.raises(ValueError, match=r"odd has the labels no, yes"):
        dfwe.run(config, place / "odd_run")


def test_experts_that_are_all_called_model_are_named_by_their_runs(place):
    for run in ("monday", "tuesday"):
        write_model(place / run / "model", kind="single_label", labels=LABELS)
    sources = [str(place / run / "model") for run in ("monday", "tuesday")]
    encoder = hf.load(place / "encoder")
    task = load_task(place / "tasks" / "film")
    problem = make_problem(task, encoder, load_tokenizer(encoder.path), max_length=16)
    assert list(given_experts(sources, "e", problem)) == [
        "monday-model",
        "tuesday-model",
    ]
    with pytest.raises(ValueError, match="have one name"):
        given_experts([sources[0], sources[0]], "e", problem)


def test_tables_that_sources_train_and_the_target_freezes_are_refused(place):
    config = make_config(place)
    config.source.frozen = ()
    with pytest.raises(ValueError, match=r"word/embedding \(play\).*source\.frozen"):
        dfwe.run(config, place / "thawed")


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("objective", "f1", r"search\.objective: 'f1' is unknown.*soft_f1"),
        ("space", "cube", r"search\.space: 'cube' is unknown.*simplex"),
        ("strategy", "CMA", r"'CMA' is unknown.*CMA_ES"),
        ("budget", 5, r"budget: 5 evaluations do not hold"),
    ],
)
def test_wrong_search_options_say_what_there_is(place, field, value, message):
    config = make_config(place)
    config.search[field] = value
    with pytest.raises(ValueError, match=message):
        dfwe.run(config, place / f"wrong_{field}")


def test_an_unknown_target_lists_the_tasks(place):
    config = make_config(place, targets=("films",))
    with pytest.raises((ValueError, FileNotFoundError), match="films"):
        dfwe.run(config, place / "unknown")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"seeds": 0}, r"seeds: 0 asked for"),
        (
            {"sources": ("play", "direct")},
            r"sources direct: these names stand for other",
        ),
        ({"task_lengths": (("folm", 32),)}, r"task_lengths: folm"),
    ],
    ids=("seeds", "names", "lengths"),
)
def test_options_that_cannot_be_are_refused_before_training(place, changes, message):
    write_task(place / "named" / "direct")
    for name in TASKS:
        write_task(place / "named" / name)
    config = make_config(place, **changes)
    config.data.path = str(place / "named")
    if "task_lengths" in changes:
        config.data.path = str(place / "tasks")
    folder = place / f"refused_{next(iter(changes))}"
    with pytest.raises(ValueError, match=message):
        dfwe.run(config, folder)
    assert not (folder / "experts").exists()


def test_test_rows_and_saving_do_not_train_anew_and_length_does(place, finished):
    def experts():
        return {file.name for file in (place / "run" / "experts").glob("*.safetensors")}

    before = experts()
    config = make_config(place, max_test_rows=3, comparators=("multitask_finetune",))
    for stage in (config.source, config.target, config.multitask):
        stage.update({"log_every": 7, "save_seconds": 0.0})
    dfwe.run(config, place / "run", overwrite=True)
    assert experts() == before
    config = make_config(place, task_lengths=(("play", 20),), comparators=())
    dfwe.run(config, place / "run", overwrite=True)
    assert {name.split("-")[0] for name in experts() - before} == {"play", "film"}


def test_a_candidate_that_is_asked_for_again_is_remembered(place):
    encoder = hf.load(place / "encoder")
    task = load_task(place / "tasks" / "film")
    problem = make_problem(task, encoder, load_tokenizer(encoder.path), max_length=16)
    key = jax.random.key(0)
    points = make_points(
        {
            str(n): starting_params(problem, encoder.params, encoder.params, one)
            for n, one in enumerate(jax.random.split(key, 3))
        }
    )
    rows = np.eye(3, dtype=np.float32)
    scorer = make_scorer(problem, "dev", points, tokens_per_batch=64)
    first = scorer.readouts(rows[[0, 1, 0]])
    assert scorer.evaluated == 2
    again = scorer.readouts(rows[[2, 1, 0]])
    assert scorer.evaluated == 3
    alone = make_scorer(problem, "dev", points, tokens_per_batch=64).readouts(rows)
    for name, expected in alone.items():
        np.testing.assert_array_equal(first[name], expected[[0, 1, 0]], err_msg=name)
        np.testing.assert_array_equal(again[name], expected[[2, 1, 0]], err_msg=name)
    assert scorer.scores({"a": rows[0], "b": rows[1]}).keys() == {"a", "b"}
    assert scorer.evaluated == 3
