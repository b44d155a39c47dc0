"""Which texts of a task are read, how much of them, and what is left out and why."""

import re

import numpy as np
import pytest

from fusion_jax.data.task import Task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.transfer.corpora import Rules, read_corpora
from tests import small_models

ADJECTIVES = "good great fine bad dull poor".split()
NOUNS = "film ada bo".split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(
        small_models.write_tokenizer(tmp_path_factory.mktemp("words") / "words")
    )


def texts(start=0, count=18):
    made = [f"the {n} was {a}" for n in NOUNS for a in ADJECTIVES]
    return [f"{made[i % 18]}{' so' * (i // 18)}" for i in range(start, start + count)]


def task(name, rows, labels=("low", "high"), split="train"):
    made = tuple({"text": t, "target": i % len(labels)} for i, t in enumerate(rows))
    return Task(name, "single_label", labels, (), {split: made})


def test_all_tasks_give_as_many_tokens_as_the_smallest(tokenizer):
    found = read_corpora(
        [task("wide", texts(0, 40)), task("narrow", texts(0, 9))], tokenizer, texts=30
    )
    assert found.names == ("wide", "narrow") and not found.left_out
    assert found.narrowest == "narrow"
    assert found.budget == 9 * 4
    assert found.texts == 9
    assert sum(map(len, found.kept[0].terms)) >= found.budget
    assert [len(corpus.inputs) for corpus in found.kept] == [9, 9]


def test_neither_the_order_of_rows_nor_repetition_nor_the_name_decides(tokenizer):
    rows = texts(0, 30)
    again = [f"  {row.upper()} " for row in reversed(rows)] + rows[:5]
    one, other = read_corpora([task("a", rows), task("b", again)], tokenizer).kept
    assert len(one.terms) == len(other.terms)
    for left, right in zip(one.terms, other.terms, strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(one.inputs.lengths, other.inputs.lengths)


def test_another_seed_draws_other_texts(tokenizer):
    tasks = [task("a", texts(0, 40)), task("b", texts(10, 10))]
    drawn = [
        read_corpora(tasks, tokenizer, seed=seed, texts=8).kept[0].terms
        for seed in (0, 1)
    ]
    assert [x.tolist() for x in drawn[0]] != [x.tolist() for x in drawn[1]]


@pytest.mark.parametrize(
    "odd,reason",
    [
        (lambda: task("odd", texts(), labels=("only",)), r"one class alone \(only\)"),
        (lambda: task("odd", texts(0, 3)), "3 distinct texts in 3 rows"),
        (lambda: task("odd", texts()[:2] * 9), "2 distinct texts in 18 rows"),
        (lambda: task("odd", ["", " \n"] * 9), "18 are empty"),
        (lambda: task("odd", texts(), split="test"), "no train split, only test"),
        (
            lambda: task("odd", [f"{t} \ufffd" for t in texts()]),
            "replacement or control ones",
        ),
        (
            lambda: task("odd", [f"кино {i} плохое {i}" for i in range(18)]),
            "unknown to the tokenizer",
        ),
        (
            lambda: task("odd", ["i not we it " * i for i in range(1, 18)]),
            "0% of its tokens are common terms .* another language",
        ),
    ],
)
def test_a_task_that_cannot_be_compared_is_left_out_by_a_reason(tokenizer, odd, reason):
    tasks = [task("a", texts()), odd(), task("b", texts(4, 18))]
    found = read_corpora(tasks, tokenizer)
    assert found.names == ("a", "b")
    assert list(found.left_out) == ["odd"]
    assert re.search(reason, found.left_out["odd"])


def test_who_is_left_out_does_not_bound_what_is_read(tokenizer):
    foreign = task(
        "odd", [f"i not we it {w}" for w in "very home at in and who".split()]
    )
    tasks = [task("a", texts()), task("b", texts(4, 18)), foreign]
    found = read_corpora(tasks, tokenizer, rules=Rules(rows=3))
    assert "common terms" in found.left_out["odd"]
    assert found.budget > 6 * 5


def test_a_budget_that_a_task_has_not_leaves_it_out(tokenizer):
    tasks = [task("a", texts(0, 30)), task("b", texts(0, 30)), task("c", texts(0, 9))]
    found = read_corpora(tasks, tokenizer, budget=60)
    assert found.budget == 60 and found.narrowest == ""
    assert found.left_out["c"].startswith("36 tokens, fewer than the budget of 60")


def test_fewer_than_two_tasks_are_refused_with_all_reasons(tokenizer):
    with pytest.raises(ValueError, match="1 of 3 tasks") as told:
        read_corpora(
            [task("a", texts()), task("b", [""] * 9), task("c", texts(0, 3))], tokenizer
        )
    assert "b: 0 distinct texts" in str(told.value)
    assert "c: 3 distinct texts" in str(told.value)
    with pytest.raises(ValueError, match="the names a occur twice"):
        read_corpora([task("a", texts()), task("a", texts())], tokenizer)
