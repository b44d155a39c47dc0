from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.data.task import Task, TaskError, few_shot, hash_task, split_off_dev


def make(counts, dev=0, groups=None, kind="single_label"):
    rows = [
        {"text": f"row {i} of class {c}", "target": c}
        for c, n in enumerate(counts)
        for i in range(n)
    ]
    if groups:
        rows = [{**row, "group": f"g{i % groups}"} for i, row in enumerate(rows)]
    labels = tuple(f"class_{c}" for c in range(len(counts)))
    splits = {"train": tuple(rows), "test": tuple(rows[:2])}
    if dev:
        splits["dev"] = tuple((rows * dev)[:dev])
    return Task("toy", kind, labels, (), splits)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=6),
    st.data(),
    st.integers(0, 5),
)
def test_few_shot_takes_that_many_rows_in_proportion_and_in_order(counts, data, seed):
    task = make(counts)
    shots = data.draw(st.integers(1, sum(counts)))
    drawn = few_shot(task, shots, seed)
    rows = drawn.splits["train"]
    assert len(rows) == shots
    order = [task.splits["train"].index(row) for row in rows]
    assert order == sorted(set(order))
    taken = Counter(row["target"] for row in rows)
    if shots >= len(counts):
        assert len(taken) == len(counts)
        spare, rest = shots - len(counts), sum(counts) - len(counts)
        for label, count in enumerate(counts):
            share = 1 + (spare * (count - 1) / rest if rest else 0)
            assert abs(taken[label] - share) < 1
    assert drawn.splits["test"] == task.splits["test"]
    assert few_shot(task, shots, seed) == drawn


def test_few_shot_depends_on_the_seed_and_cuts_dev_to_match():
    task = make([200, 200], dev=300)
    assert few_shot(task, 50, 0) != few_shot(task, 50, 1)
    assert len(few_shot(task, 50, 0).splits["dev"]) == 64
    assert len(few_shot(task, 400, 0).splits["dev"]) == 100
    assert len(few_shot(make([9, 9], dev=5), 4, 0).splits["dev"]) == 5


@pytest.mark.parametrize("shots", [0, 21, -1])
def test_few_shot_refuses_more_rows_than_there_are(shots):
    with pytest.raises(TaskError, match="20 training rows"):
        few_shot(make([10, 10]), shots, 0)


def test_split_off_dev_is_a_stratified_tenth_that_leaves_train():
    task = split_off_dev(make([100, 50]), 0)
    assert Counter(r["target"] for r in task.splits["dev"]) == {0: 10, 1: 5}
    assert len(task.splits["train"]) == 135
    texts = [row["text"] for split in ("train", "dev") for row in task.splits[split]]
    assert len(set(texts)) == 150
    assert list(task.splits) == ["train", "dev", "test"]
    assert split_off_dev(task, 1) is task


def test_split_off_dev_keeps_scenes_whole():
    task = split_off_dev(make([60, 60], groups=20), 3)
    scenes = [{row["group"] for row in task.splits[s]} for s in ("train", "dev")]
    assert not scenes[0] & scenes[1]
    assert len(task.splits["dev"]) == 12


def test_an_absent_split_is_named_with_those_there_are():
    task = make([3, 3])
    with pytest.raises(TaskError, match=r"no dev split, only train, test"):
        task.rows("dev")
    partial = replace(task, splits={"dev": task.splits["train"]})
    with pytest.raises(TaskError, match="use_partial"):
        partial.rows("train")


def test_hash_depends_on_rows_and_labels_but_not_on_name_or_origin():
    task = make([3, 3])
    assert hash_task(task) == hash_task(replace(task, name="other", origin="else"))
    assert hash_task(task) != hash_task(replace(task, labels=("x", "y")))
    changed = dict(task.splits, test=task.splits["test"][:1])
    assert hash_task(task) != hash_task(replace(task, splits=changed))
    turned = dict(reversed(task.splits.items()))
    assert hash_task(task) == hash_task(replace(task, splits=turned))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "classification"}, "not one of single_label"),
        ({"labels": ("a", "a")}, "occurs twice"),
        ({"splits": {}}, "no split"),
        ({"splits": {"train": ()}}, "no rows"),
        ({"splits": {"valid": ({"text": "a", "target": 0},)}}, "split 'valid'"),
        ({"splits": {"train": ({"text": "a", "target": 7},)}}, "no class id below 2"),
        ({"splits": {"train": ({"target": 0},)}}, "'text' must be a string"),
        ({"unscored_labels": ("c",)}, "unscored label 'c'"),
        ({"kind": "span"}, "needs 'context'"),
        ({"kind": "choice"}, "0 choices"),
        ({"labels": ()}, "needs label names"),
    ],
)
def test_a_task_that_cannot_be_is_refused_with_the_reason(changes, message):
    with pytest.raises(TaskError, match=message):
        replace(make([2, 2]), **changes)


def test_many_bad_rows_are_counted_and_the_first_ten_are_shown():
    rows = tuple({"text": "a", "target": 9} for _ in range(25))
    with pytest.raises(TaskError, match="25 problems") as caught:
        replace(make([2, 2]), splits={"train": rows})
    assert str(caught.value).count("train row") == 10
    assert "and 15 more" in str(caught.value)
