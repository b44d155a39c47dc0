import dataclasses

import numpy as np
import pytest

from fusion_jax.data.encoded import hash_encoded
from fusion_jax.data.task import Task
from fusion_jax.data.tokenise import encode

LONG = "the cat sat on the mat where the dog ran home , who is who ?"
ROWS = (
    {"text": LONG, "target": 0, "group": "a"},
    {"text": "red sun", "target": 1, "group": "b"},
)


def encoded_with(tokenizer, rows=ROWS, length=32, **changes):
    task = Task(
        name="toy",
        kind="single_label",
        labels=("yes", "no"),
        metrics=("accuracy",),
        splits={"train": rows},
        origin="here",
    )
    task = dataclasses.replace(task, **changes)
    return encode(task, "train", tokenizer, length)


def test_equal_splits_have_one_hash_whatever_they_are_called(tokenizer):
    one = hash_encoded(encoded_with(tokenizer))
    assert one == hash_encoded(encoded_with(tokenizer, name="other", origin="there"))
    assert len(one) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": ROWS[::-1]},
        {"rows": ROWS[:1]},
        {"rows": ({**ROWS[0], "text": LONG.replace("cat", "ada")}, ROWS[1])},
        {"rows": ({**ROWS[0], "target": 1}, ROWS[1])},
        {"length": 16},
        {"labels": ("no", "yes")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_training_sees_changes_the_hash(tokenizer, changes):
    before = encoded_with(tokenizer)
    after = encoded_with(tokenizer, **changes)
    assert hash_encoded(before) != hash_encoded(after)


def test_rows_that_run_together_are_not_the_same_rows(tokenizer):
    encoded = encoded_with(tokenizer)
    ids = [np.asarray(row) for row in encoded.columns["input_ids"]]
    moved = [np.append(ids[0], ids[1][:1]), ids[1][1:]]
    columns = {**encoded.columns, "input_ids": moved}
    assert hash_encoded(encoded) != hash_encoded(
        dataclasses.replace(encoded, columns=columns)
    )
