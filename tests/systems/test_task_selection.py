"""Task selection as a whole, on a tiny encoder and hand-written task folders."""

import json

import numpy as np
import pytest

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.tensors import read_file
from fusion_jax.systems import task_selection
from fusion_jax.systems.saved_model import score_splits
from fusion_jax.systems.selection_defaults import (
    DEFAULT_MEASURE,
    FUSION,
    order_of,
    selection_config,
)
from fusion_jax.systems.selection_measures import measure_tasks
from fusion_jax.systems.selection_setting import make_ready, prepare
from fusion_jax.systems.workdir import ConfigChanged
from fusion_jax.transfer.ranking import fused_ranks
from fusion_jax.trees import unflatten
from tests.small_models import write_model
from tests.systems.selection_tasks import DOMAINS, rows_of, write_domains, write_rows

NAMES = tuple(DOMAINS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four task folders and an encoder."""
    root = tmp_path_factory.mktemp("selection")
    write_model(root / "encoder")
    write_domains(root / "tasks")
    return root


def make_config(place, **changes):
    config = selection_config()
    config.encoder = str(place / "encoder")
    config.data = {"reader": "folders", "path": str(place / "tasks")}
    config.max_length = 16
    for stage in (config.fit, config.few):
        stage.update({"epochs": 6, "batch_size": 8, "learning_rate": 1e-2})
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(place):
    """A study of all pairs by three measures, with few-shot tuning of kept pairs."""
    measures = ("jensen_shannon", "mean_cosine", "mmd")
    told = {"measures": measures, "order": "jensen_shannon"}
    config = make_config(place, **told, keep=0.3, few_shot=8)
    return task_selection.run(config, place / "run")


@pytest.mark.parametrize(
    "order, measures, found",
    [
        ("", (), DEFAULT_MEASURE),
        ("", (DEFAULT_MEASURE, "mmd"), DEFAULT_MEASURE),
        ("", ("mmd",), "mmd"),
        ("", ("mmd", "kl"), FUSION),
        ("kl", ("mmd", "kl"), "kl"),
    ],
)
def test_sources_are_kept_by_an_order_that_was_measured(order, measures, found):
    config = selection_config()
    config.update({"order": order, "measures": measures})
    assert order_of(config) == found


def pairs_of(results):
    return {(p["source"], p["target"]): p for p in results["pairs"]}


def test_the_record_has_every_ordered_pair_with_scores_in_range(finished):
    results = json.loads((finished.workdir / "results.json").read_text())
    assert results == finished.results
    pairs = pairs_of(results)
    assert set(pairs) == {(s, t) for s in NAMES for t in NAMES if s != t}
    assert all(0 <= pair["zero_shot"] <= 1 for pair in pairs.values())
    for target in NAMES:
        of_target = [pairs[s, target] for s in NAMES if s != target]
        for name in results["measures"]:
            if name in of_target[0]["ranks"]:
                assert sorted(p["ranks"][name] for p in of_target) == [1, 2, 3]
        [held] = [p for p in of_target if p["kept"]]
        assert held["ranks"]["jensen_shannon"] == 1
    assert (finished.workdir / "report.html").stat().st_size > 20_000


def test_domains_of_the_same_words_are_each_others_first_source(finished):
    pairs = pairs_of(finished.results)
    for one, other in (("a1", "a2"), ("b1", "b2")):
        for source, target in ((one, other), (other, one)):
            assert pairs[source, target]["kept"]
            assert pairs[source, target]["ranks"]["vocabulary_overlap"] == 1


def test_every_order_stands_beside_its_controls(finished):
    judged = finished.results["measures"]
    controls = {"random", "own_score", "mean_elsewhere", "confidence", "learned"}
    assert controls | {"fusion", "vocabulary_overlap", "mmd"} <= set(judged)
    for record in judged.values():
        assert record["pruning"][-1]["survival"] == 1
        assert record["pruning"][-1]["regret"] == pytest.approx(0)
    assert abs(judged["random"]["spearman"]["mean"]) < 0.15
    assert judged["jensen_shannon"]["against_reference"]["mean"] == 0


def test_the_control_is_ranked_beside_the_measures_asked_for(place):
    setting = prepare(make_config(place), place / "beside")
    tasks = list(setting.read.whole.values())

    def measured(*measures):
        return measure_tasks(
            tasks,
            measures,
            encoder=None,
            tokenizer=setting.tokenizer,
            controls=("vocabulary_overlap",),
        )

    one = measured("jensen_shannon")
    assert set(one.ranked) == {"jensen_shannon", "vocabulary_overlap"}
    two = measured("jensen_shannon", "kl")
    tables = {name: two.distances[name] for name in ("jensen_shannon", "kl")}
    assert two.asked == tuple(tables)
    np.testing.assert_array_equal(two.ranked["fusion"], fused_ranks(tables, two.names))
    # Asked for, it is a measure as the others are.
    assert measured("kl", "vocabulary_overlap").asked == ("kl", "vocabulary_overlap")
    with pytest.raises(ValueError, match=r"order: 'fusion' is not one of kl, vocab"):
        config = make_config(place, measures=("kl",), order="fusion")
        task_selection.run(config, place / "unfused")


def test_a_cell_is_the_source_models_score_on_the_targets_test_rows(finished, place):
    """Read one by one by `score_splits`, in other batches."""
    config = make_config(
        place,
        measures=("jensen_shannon", "mean_cosine", "mmd"),
        order="jensen_shannon",
    )
    setting = prepare(config, place / "run")
    make_ready(setting, NAMES)
    pairs = pairs_of(finished.results)
    for source in ("a1", "b2"):
        [file] = (place / "run" / "experts").glob(f"{source}-*.safetensors")
        params = unflatten(read_file(file))
        for target in NAMES:
            found = score_splits(setting.problems[target], params, ["test"])["test"]
            if source == target:
                own = finished.results["tasks"][source]["own_score"]
                assert own == pytest.approx(found.mean)
            else:
                told = pairs[source, target]["zero_shot"]
                assert told == pytest.approx(found.mean)


def test_kept_pairs_alone_are_tuned_by_few_rows_beside_the_plain_model(finished):
    for pair in finished.results["pairs"]:
        assert (pair["few_shot"] is not None) == pair["kept"]
    assert set(finished.results["few_shot_direct"]) == set(NAMES)
    assert not list((finished.workdir / "few_shot" / "fits").glob("*"))


def test_the_ledger_adds_up(finished):
    ledger = finished.results["ledger"]
    assert ledger["estimated"] == [] and ledger["pair"] == "few-shot tuning"
    whole = ledger["curve"][-1]
    for account in ("per_pair", "per_source"):
        # All pairs kept cost more than none measured: by the measuring itself.
        assert whole[account]["kept"] > whole[account]["all"]
        measuring = sum(ledger["measuring"]["terms"].values())
        measuring += ledger["measuring"]["measures"]["jensen_shannon"]
        extra = whole[account]["kept"] - whole[account]["all"]
        assert extra == pytest.approx(measuring)
    training = sum(ledger["training"].values())
    assert whole["per_source"]["all"] > training
    # Each of the four is kept by one target: no training is saved.
    assert ledger["at_keep"]["per_source"]["kept"] > training


def test_a_stopped_run_goes_on_and_trains_nothing_twice(finished, place):
    run = place / "run"
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*.safetensors")}
    rows = sorted((run / "zero_shot").glob("*.json"))
    gone = rows[0].read_text()
    rows[0].unlink()
    (run / "results.json").unlink()
    config = make_config(
        place,
        measures=("jensen_shannon", "mean_cosine", "mmd"),
        order="jensen_shannon",
    )
    config.keep, config.few_shot = 0.3, 8
    again = task_selection.run(config, run)
    assert again.results["pairs"] == finished.results["pairs"]
    assert {f: f.stat().st_mtime_ns for f in run.rglob("*.safetensors")} == before
    old, new = json.loads(gone), json.loads(rows[0].read_text())
    assert old["train_seconds"] == new["train_seconds"]
    first, second = (r.results["ledger"]["measuring"] for r in (finished, again))
    assert first["states"] == second["states"] and first["terms"] == second["terms"]
    # Stopped between a model and its time, the time is not known, nor made up.
    name = rows[0].stem
    (run / "experts" / f"{name}.json").unlink()
    rows[0].unlink()
    tuned = sorted((run / "few_shot").glob("*.json"))[0]
    (run / "few_shot" / "fits" / tuned.stem).mkdir(parents=True)
    tuned.unlink()
    (run / "results.json").unlink()
    ledger = task_selection.run(config, run).results["ledger"]
    source = json.loads(rows[0].read_text())["source"]
    assert ledger["training"][source] is None and ledger["estimated"] == [source]
    assert ledger["at_keep"]["per_source"]["kept"] > 0
    assert json.loads(tuned.read_text())["seconds"] == {"wall": None, "cpu": None}
    with pytest.raises(ConfigChanged, match="keep"):
        task_selection.run(make_config(place, keep=0.9), run)


def test_only_kept_pairs_are_trained_where_they_are_all_that_is_asked(place, tmp_path):
    domains = {**DOMAINS, "far": "we i it very".split()}
    write_domains(tmp_path / "tasks", domains)
    config = make_config(place, measures=("jensen_shannon",), pairs="kept", keep=0.25)
    config.data.path = str(tmp_path / "tasks")
    found = task_selection.run(config, tmp_path / "run").results
    kept = {p["source"] for p in found["pairs"] if p["kept"]}
    trained = {f.name.split("-")[0] for f in (tmp_path / "run").rglob("*.safetensors")}
    assert trained == kept and "far" not in kept
    for pair in found["pairs"]:
        assert (pair["zero_shot"] is not None) == pair["kept"]
    assert found["measures"] is None and found["few_shot_direct"] is None
    assert found["ledger"]["estimated"] == ["far"]
    assert found["tasks"]["far"]["own_score"] is None
    # One training of five is saved.
    saved = found["ledger"]["at_keep"]["per_source"]
    assert saved["kept"] < saved["all"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_texts_that_some_task_tests_on_are_in_no_training(place, tmp_path):
    write_domains(tmp_path)
    tested = rows_of(DOMAINS["a1"], 16, 2)
    shouted = [{**row, "text": row["text"].upper() + " ."} for row in tested[:6]]
    train = rows_of(DOMAINS["b1"], 40, 20) + shouted
    write_rows(tmp_path / "b1", "train", train)
    config = make_config(place)
    config.data.path = str(tmp_path)
    read = prepare(config, tmp_path / "run").read
    assert read.shared["b1"] >= 6
    texts = {row["text"].casefold() for row in read.tasks["b1"].rows("train")}
    assert not texts & {row["text"].casefold() for row in shouted}


@pytest.mark.parametrize(
    "rows, why",
    [
        ([{"text": "good", "label": "positive"}] * 20, "one class"),
        (rows_of(DOMAINS["b1"], 3, 5), "3 training rows"),
        (
            [{"text": "  ", "label": n} for n in ("positive", "negative")] * 20,
            "are empty",
        ),
        (
            [
                {"text": f"ⰀⰁ Ⰲ{k} Ⰳ", "label": ("positive", "negative")[k % 2]}
                for k in range(40)
            ],
            "unknown to the tokenizer",
        ),
    ],
    ids=["one class", "three rows", "empty texts", "another script"],
)
def test_a_task_that_cannot_be_compared_is_left_out_by_name(rows, why, place, tmp_path):
    write_domains(tmp_path / "tasks")
    write_rows(tmp_path / "tasks" / "b2", "train", rows)
    config = make_config(place, measures=("jensen_shannon",))
    config.data.path = str(tmp_path / "tasks")
    setting = prepare(config, tmp_path / "run")
    measured = task_selection._measured(setting)
    left_out = {**setting.read.left_out, **measured.left_out}
    assert list(left_out) == ["b2"] and why in left_out["b2"]
    assert measured.names == ("a1", "a2", "b1")


def test_an_encoder_that_says_nan_is_named_and_nothing_is_trained(place, tmp_path):
    sick = hf.load(place / "encoder")
    layer = dict(sick.params["encoder"]["layer_1"])
    scale = np.full_like(np.asarray(layer["mlp"]["down"]["bias"]), np.nan)
    layer["mlp"] = {**layer["mlp"], "down": {**layer["mlp"]["down"], "bias": scale}}
    params = {"encoder": {**sick.params["encoder"], "layer_1": layer}}
    config = make_config(place, measures=("mmd",), order="mmd")
    setting = prepare(config, tmp_path)
    setting.encoder = setting.encoder._replace(params=params)
    with pytest.raises(ValueError, match=r"a1: .*not finite"):
        task_selection._measured(setting)


def test_other_labels_are_refused_by_name_before_any_training(place, tmp_path):
    write_domains(tmp_path / "tasks")
    write_domains(tmp_path / "tasks", {"c": ["film"]}, labels=("positive", "negative"))
    config = make_config(place)
    config.data.path = str(tmp_path / "tasks")
    with pytest.raises(ValueError, match="c: single_label with labels positive, neg"):
        task_selection.run(config, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_two_tasks_are_no_choice(place, tmp_path):
    config = make_config(place, tasks=("a1", "b1"))
    with pytest.raises(ValueError, match="needs three tasks"):
        task_selection.run(config, tmp_path / "run")


def test_bad_options_are_all_named_at_once(place, tmp_path):
    config = make_config(place, keep=0.0, pairs="some", measures=("kl2",), order="x")
    with pytest.raises(ValueError) as told:
        task_selection.run(config, tmp_path / "run")
    for part in ("keep: 0.0", "pairs: 'some'", "kl2 unknown", "order: 'x'"):
        assert part in str(told.value)


def test_tasks_of_several_labels_a_row_are_tried_too(place, tmp_path):
    write_domains(tmp_path / "tasks")
    for name in NAMES:
        folder = tmp_path / "tasks" / name
        for seed, (split, count) in enumerate(
            (("train", 24), ("dev", 12), ("test", 8))
        ):
            rows = rows_of(DOMAINS[name], count, seed)
            several = [{"text": r["text"], "labels": [r["label"]]} for r in rows]
            write_rows(folder, split, several)
    config = make_config(place, measures=("jensen_shannon",), tasks=NAMES[:3])
    config.data.path = str(tmp_path / "tasks")
    config.fit.epochs = 1
    found = task_selection.run(config, tmp_path / "run").results
    assert found["metric"] == "f1_micro" and len(found["pairs"]) == 6
    [file] = (tmp_path / "run" / "zero_shot").glob("a1-*.json")
    for cell in json.loads(file.read_text())["targets"].values():
        assert 0.5 <= cell["confidence"] <= 1
