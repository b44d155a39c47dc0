"""Dataless fusion as a whole, on a tiny encoder and hand-written task folders."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems import dataless_fusion
from fusion_jax.systems.dataless_given import Fusion
from fusion_jax.systems.dataless_groups import Group, groups_of
from fusion_jax.systems.dataless_members import Member
from fusion_jax.systems.dataless_methods import MERGED
from fusion_jax.systems.dataless_outcome import METHODS
from fusion_jax.systems.defaults import dataless_config
from fusion_jax.systems.problem import make_problem
from fusion_jax.systems.tasks import read_tasks
from fusion_jax.systems.workdir import ConfigChanged
from tests.small_models import LABELS, sentences, write_model, write_task

TASKS = ("film", "play", "song")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three task folders and an encoder; one task lacks a label in training."""
    root = tmp_path_factory.mktemp("dataless")
    write_model(root / "encoder")
    for name in TASKS[:2]:
        write_task(root / "tasks" / name)
    positive = [row for row in sentences(24) if row["label"] == "positive"]
    write_task(root / "tasks" / "song", train=positive)
    return root


def make_config(place, **changes):
    config = dataless_config()
    config.encoder = str(place / "encoder")
    config.data = {"reader": "folders", "path": str(place / "tasks")}
    config.tasks = TASKS
    config.max_length = 16
    for stage in (config.fit, config.multitask):
        stage.update({"epochs": 2, "batch_size": 4, "learning_rate": 1e-2})
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(place):
    """One run of all methods over one group, and its folder."""
    return dataless_fusion.run(make_config(place), place / "run")


def test_the_record_holds_every_method_with_scores_in_range(finished):
    results = json.loads((finished.workdir / "results.json").read_text())
    assert results == finished.results
    assert tuple(results["methods"]) == METHODS
    for name, entry in results["methods"].items():
        assert 0 <= entry["dev"] <= 1, name
        low, high = entry["in_domain"]["interval"]
        assert low - 1e-9 <= entry["test"] <= high + 1e-9, name
        assert set(entry["in_domain"]["tasks"]) == set(TASKS)
        assert entry["out_of_domain"] is None
    assert results["target"] == "all"
    assert (finished.workdir / "report.html").stat().st_size > 10_000


def test_options_are_chosen_by_dev_among_all_that_were_tried(finished):
    for name, entry in finished.results["chosen"].items():
        best = max(one["dev"] for one in entry["tried"])
        assert finished.results["methods"][name]["dev"] == pytest.approx(best)
    alphas = [one["alpha"] for one in finished.results["chosen"]["regmean"]["tried"]]
    assert alphas == list(dataless_config().alphas)


def test_regmean_regresses_every_linear_layer_and_averages_the_rest(finished):
    counts = finished.results["layers"]["regmean"]
    # Two layers of six kernels, and the pooler.
    assert counts["regressed"] == 13
    assert counts["averaged"] > 13


def test_the_saved_model_is_the_regmean_merge(finished, place):
    saved = hf.load(finished.workdir / "model", kind="single_label")
    assert saved.labels == LABELS
    experts = [expert(place, name) for name in TASKS]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *experts)
    flat = trees.flatten(mean)
    for leaf, x in trees.flatten(saved.params).items():
        if leaf.startswith("encoder/") and not leaf.endswith("kernel"):
            np.testing.assert_allclose(x, flat[leaf], rtol=1e-5, atol=1e-6)
    kernel = "encoder/layer_0/mlp/up/kernel"
    assert not np.allclose(trees.flatten(saved.params)[kernel], flat[kernel], atol=1e-5)


def expert(place, name, run="run"):
    from fusion_jax.checkpoints.tensors import read_file

    [file] = (place / run / "experts").glob(f"{name}-*.safetensors")
    return trees.unflatten(read_file(file))


def test_a_label_that_one_owner_lacks_is_merged_without_that_owner(finished, place):
    setting = dataless_fusion.prepare(
        make_config(place), 0, hf.load(place / "encoder"), place / "run" / "experts"
    )
    members = list(setting.members.values())
    assert [list(m.owned) for m in members] == [
        [True, True],
        [True, True],
        [False, True],
    ]
    fusion = Fusion(members, setting.encoder.params, True, make_config(place))
    bias = next(MERGED["average"](fusion)).head["classifier"]["bias"]
    own = [np.asarray(m.params["head"]["classifier"]["bias"]) for m in members]
    np.testing.assert_allclose(bias[0], np.mean([x[0] for x in own[:2]]), rtol=1e-5)
    np.testing.assert_allclose(bias[1], np.mean([x[1] for x in own]), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(MERGED.keys() - {"ties", "wudi"}))
def test_equal_owners_give_their_own_model(name, finished, place):
    """Task vectors are halved, so that two equal ones give one.

    TIES trims task vectors, equal or not, and WUDI adds them whole.
    """
    config = make_config(place, scales=(0.5,), ties_scales=(1.0,), mats_scale=0.5)
    setting = dataless_fusion.prepare(
        config, 0, hf.load(place / "encoder"), place / "run" / "experts"
    )
    one = setting.members["film"]
    task = replace(one.problem.task, name="copy")
    two = replace(one, problem=replace(one.problem, task=task))
    fusion = Fusion([one, two], setting.encoder.params, True, config)
    variants = list(MERGED[name](fusion))
    own = trees.flatten({"encoder": one.params["encoder"]})
    for variant in variants:
        for leaf, x in trees.flatten(variant.encoder).items():
            np.testing.assert_allclose(x, own[leaf], rtol=1e-5, atol=1e-5, err_msg=leaf)


def test_a_second_run_trains_nothing_and_says_the_same(finished, place):
    files = {f: f.stat().st_mtime_ns for f in (place / "run").rglob("*.safetensors")}
    again = dataless_fusion.run(make_config(place), place / "run")
    assert again.results == finished.results
    assert files == {
        f: f.stat().st_mtime_ns for f in (place / "run").rglob("*.safetensors")
    }
    with pytest.raises(ConfigChanged, match="alphas"):
        dataless_fusion.run(make_config(place, alphas=(0.5,)), place / "run")


def test_groups_over_one_label_space_are_tested_in_domains_they_do_not_know(place):
    config = make_config(
        place,
        merge=("pairs", "leave_one_out"),
        methods=("individual", "average", "regmean", "logit_ensemble"),
        head_init="different",
    )
    found = dataless_fusion.run(config, place / "groups").results
    names = [run["target"] for run in found["runs"]]
    assert names == ["film+play", "film+song", "play+song"]
    for run in found["runs"]:
        [left] = set(TASKS) - set(run["members"])
        assert list(run["methods"]["regmean"]["out_of_domain"]["tasks"]) == [left]
        assert run["methods"]["fisher"]["out_of_domain"] is None
    assert found["summary_out_of_domain"]["methods"]["regmean"]["mean"] is not None
    assert found["ranking"]["in_domain"]["regmean > average"]["of"] == 3
    assert "regmean > fisher" not in found["ranking"]["in_domain"]
    heads = [
        expert(place, name, "groups")["head"]["classifier"]["kernel"] for name in TASKS
    ]
    assert not np.allclose(heads[0], heads[1], atol=1e-4)
    assert (place / "groups" / "report.html").stat().st_size > 10_000


def test_tasks_of_other_labels_keep_their_own_heads(place, tmp_path):
    write_task(tmp_path / "tasks" / "film")
    three = ("bad", "fine", "good")
    rows = [{"text": f"a film {w}", "label": w} for w in three] * 4
    folder = write_task(
        tmp_path / "tasks" / "stars", labels=three, train=rows, dev=rows, test=False
    )
    shutil.copyfile(folder / "dev.jsonl", folder / "test.jsonl")
    config = make_config(
        place, tasks=("film", "stars"), labels="private", methods=METHODS
    )
    config.data.path = str(tmp_path / "tasks")
    found = dataless_fusion.run(config, tmp_path / "run")
    methods = found.results["methods"]
    assert methods["logit_ensemble"]["dev"] is None
    assert {n for n, e in methods.items() if e["dev"] is None} == {"logit_ensemble"}
    saved = hf.load(found.workdir / "model")
    assert saved.kind is None and "head" not in saved.params


def test_two_halves_of_a_task_are_a_group(place):
    config = make_config(
        place,
        tasks=("film", "play"),
        halves={"rows": 5, "share": 0.8},
        methods=("average", "regmean"),
    )
    found = dataless_fusion.run(config, place / "halves").results
    assert [run["target"] for run in found["runs"]] == ["film", "play"]
    assert found["runs"][0]["members"] == ["film_a", "film_b"]
    assert found["runs"][0]["rows"]["film_a"]["train"] == 5


def test_models_that_exist_are_merged_without_training(place, finished, tmp_path):
    folders = []
    for name in TASKS:
        params = expert(place, name)
        folders.append(
            str(
                hf.save(
                    tmp_path / name,
                    params,
                    hf.load(place / "encoder").config,
                    kind="single_label",
                    labels=LABELS,
                    tokenizer_from=place / "encoder",
                )
            )
        )
    methods = ("individual", "average", "regmean")
    config = make_config(place, experts=tuple(folders), methods=methods)
    found = dataless_fusion.run(config, tmp_path / "run").results
    for name in methods:
        trained = finished.results["methods"][name]
        assert found["methods"][name]["test"] == pytest.approx(trained["test"])
    with pytest.raises(ValueError, match="2 folders for 3 tasks"):
        dataless_fusion.run(
            make_config(place, experts=tuple(folders[:2])), tmp_path / "two"
        )


def test_bad_options_are_all_named_at_once(place, tmp_path):
    config = make_config(
        place, labels="mine", alphas=(2.0,), methods=("regmeen",), head_init="?"
    )
    with pytest.raises(ValueError) as told:
        dataless_fusion.run(config, tmp_path / "run")
    for part in ("labels: 'mine'", "head_init: '?'", "regmeen", "alphas: [2.0]"):
        assert part in str(told.value)
    with pytest.raises(ValueError, match="'trios' is not among pairs"):
        dataless_fusion.run(make_config(place, merge=("trios",)), tmp_path / "trios")


@pytest.mark.parametrize("role", ["owner", "unseen"])
def test_labels_that_differ_cannot_be_shared(role, place, tmp_path):
    for name in ("film", "song"):
        write_task(tmp_path / name)
    write_task(tmp_path / "play", labels=("positive", "negative"))
    tasks = ("film", "song", "play") if role == "owner" else ("film", "song")
    unseen = () if role == "owner" else ("play",)
    config = make_config(place, tasks=tasks, out_of_domain=unseen)
    config.data.path = str(tmp_path)
    with pytest.raises(ValueError, match="play: labels positive, negative, film has"):
        dataless_fusion.run(config, tmp_path / "run")
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing was trained before


def test_an_unseen_domain_needs_a_test_split_and_nothing_else(place, tmp_path):
    for name in ("film", "song", "late"):
        write_task(tmp_path / name)
    for split in ("train", "dev"):
        (tmp_path / "late" / f"{split}.jsonl").unlink()
    config = make_config(
        place,
        tasks=("film", "song"),
        out_of_domain=("late",),
        methods=("individual", "average", "logit_ensemble"),
    )
    config.data.path = str(tmp_path)
    found = dataless_fusion.run(config, tmp_path / "run").results
    assert found["target"] == "all"
    for name in config.methods:
        assert list(found["methods"][name]["out_of_domain"]["tasks"]) == ["late"]
    write_task(tmp_path / "blind", test=False)
    config.out_of_domain = ("blind",)
    with pytest.raises(ValueError, match="blind: no test split"):
        dataless_fusion.run(config, tmp_path / "other")
    config.out_of_domain = ("film",)
    with pytest.raises(ValueError, match="film are among the tasks"):
        dataless_fusion.run(config, tmp_path / "other")


def test_heads_with_layers_before_the_classifier_are_merged(place):
    """DistilBERT's head has a dense layer, which has no column a label."""
    encoder = hf.load(place / "encoder")
    config = replace(encoder.config, family="distilbert", type_vocab_size=0)
    options = make_config(place)
    tokenizer = load_tokenizer(place / "encoder")
    members = []
    for k, task in enumerate(read_tasks(options.data, TASKS, 0).values()):
        problem = make_problem(
            task, encoder._replace(config=config), tokenizer, max_length=16
        )
        params = problem.model.init(jax.random.key(k))
        members.append(Member(problem, params, config, options))
    base = {"encoder": members[0].params["encoder"]}
    fusion = Fusion(members, base, True, options)
    names = set(trees.flatten(members[0].params["head"]))
    for name in ("average", "fisher", "regmean"):
        head = next(MERGED[name](fusion)).head
        assert set(trees.flatten(head)) == names
    kernels = [m.params["head"]["pre_classifier"]["kernel"] for m in members]
    average = next(MERGED["average"](fusion)).head["pre_classifier"]["kernel"]
    np.testing.assert_allclose(average, np.mean(kernels, axis=0), rtol=1e-5, atol=1e-7)


def test_groupings():
    names = ("a", "b", "c")
    found = groups_of(
        names, ("pairs", "all", "leave_one_out"), unseen=("z",), shared_labels=True
    )
    assert found == [
        Group("all", names, ("z",)),
        Group("a+b", ("a", "b"), ("c", "z")),
        Group("a+c", ("a", "c"), ("b", "z")),
        Group("b+c", ("b", "c"), ("a", "z")),
    ]
    assert groups_of(("a", "b"), ("pairs", "all"), shared_labels=False) == [
        Group("all", ("a", "b"), ())
    ]
    with pytest.raises(ValueError, match="needs three tasks"):
        groups_of(("a", "b"), ("leave_one_out",), shared_labels=True)
    with pytest.raises(ValueError, match="at least two"):
        groups_of(("a",), ("all",), shared_labels=True)
    with pytest.raises(ValueError, match="one label space"):
        groups_of(names, ("leave_one_out",), shared_labels=False)
