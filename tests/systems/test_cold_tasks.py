"""Which tasks are seen, who contributes when, and what is with_test on."""

import pytest

from fusion_jax.data import Task, TaskError
from fusion_jax.systems.cold_check import rounds_of
from fusion_jax.systems.cold_defaults import cold_config
from fusion_jax.systems.cold_tasks import (
    contributor_name,
    contributors,
    few_rows,
    folds_of,
    with_test,
)

NAMES = tuple("abcdefgh")


def make_task(**rows):
    splits = {
        split: tuple({"text": f"{split} {n}", "target": n % 2} for n in range(count))
        for split, count in rows.items()
    }
    return Task("t", "single_label", ("no", "yes"), (), splits)


def test_folds_part_the_tasks():
    config = cold_config()
    config.folds = 3
    found = folds_of(config, NAMES, 5)
    assert [fold.name for fold in found] == ["fold_0", "fold_1", "fold_2"]
    assert sorted(name for fold in found for name in fold.unseen) == sorted(NAMES)
    assert sorted(len(fold.unseen) for fold in found) == [2, 3, 3]
    for fold in found:
        assert set(fold.seen) == set(NAMES) - set(fold.unseen)
    config.fold = 1
    assert folds_of(config, NAMES, 5) == [found[1]]
    assert folds_of(config, NAMES, 6) != [found[1]]
    config.folds = 0
    assert folds_of(config, NAMES, 5)[0].unseen == ()


def test_nobody_contributes_twice_to_a_round_and_all_do_in_time():
    rounds = [contributors(NAMES, 3, r, 0) for r in range(40)]
    assert all(len(set(drawn)) == 3 for drawn in rounds)
    counts = [sum(name in drawn for drawn in rounds) for name in NAMES]
    assert min(counts) >= 5 and len(set(rounds)) > 20
    assert contributors(NAMES, 3, 7, 0) == rounds[7]
    assert contributors(NAMES, 99, 0, 0) == NAMES


def test_a_task_without_test_labels_is_tested_on_dev_and_chosen_on_train():
    found = with_test(make_task(train=40, dev=6), 0)
    texts = {s: [row["text"] for row in rows] for s, rows in found.splits.items()}
    assert texts["test"] == [f"dev {n}" for n in range(6)]
    assert len(texts["dev"]) == 4 and len(texts["train"]) == 36
    assert not set(texts["dev"]) & set(texts["train"])
    whole = make_task(train=40, dev=6, test=5)
    assert with_test(whole, 0) == whole
    alone = with_test(make_task(train=40), 0).splits
    assert [len(alone[s]) for s in ("train", "dev", "test")] == [32, 4, 4]
    with pytest.raises(TaskError, match="no train split"):
        with_test(make_task(dev=3), 0)


def test_few_shots_of_a_task_that_has_fewer_are_all_it_has():
    task = make_task(train=12, dev=4, test=4)
    assert len(few_rows(task, 8, 0).splits["train"]) == 8
    assert few_rows(task, 100, 0).splits["train"] == task.splits["train"]


def test_names_as_a_repository_takes_them():
    assert contributor_name("glue/rte (2)") == "glue_rte__2_"
    assert contributor_name(".hidden") == "_hidden"
    assert len(contributor_name("x" * 300)) == 100


def test_the_first_and_the_last_base_are_always_evaluated():
    config = cold_config()
    config.rounds = 7
    assert rounds_of(config, "evaluate_rounds") == [0, 3, 7]
    assert rounds_of(config, "few_shot_rounds") == [0, 7]
    assert rounds_of(config, "frozen_rounds") == list(range(8))
    config.evaluate_rounds = (2, -2)
    assert rounds_of(config, "evaluate_rounds") == [0, 2, 6, 7]
