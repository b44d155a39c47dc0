import json

import numpy as np
import pytest

from fusion_jax.data import Task, TaskError, load_task
from fusion_jax.systems.answers import answers
from fusion_jax.systems.saved_model import evaluate, relabelled
from tests.small_models import LABELS, write_model, write_task


def test_answers_are_right_as_often_as_the_score_says(tmp_path):
    model = write_model(tmp_path / "model", kind="single_label", labels=LABELS)
    folder = write_task(tmp_path / "opinion")
    record = evaluate(model, folder, max_length=16)
    lines = (folder / "test.jsonl").read_text().splitlines()
    rows = [(f"row {n}", json.loads(line)) for n, line in enumerate(lines)]
    found = [answer["label"] for answer in answers(model, rows, max_length=16)]
    right = np.mean(
        [a == row["label"] for a, (_, row) in zip(found, rows, strict=True)]
    )
    assert record["metrics"]["accuracy"] == pytest.approx(right)


def task_of(kind, targets):
    rows = []
    for target in targets:
        row = {"text": "a film", "target": target}
        if kind == "token":
            row["tokens"] = ("a",) * len(target)
        rows.append(row)
    return Task("toy", kind, ("x", "y", "z"), (), {"test": tuple(rows)}, ("y",))


@pytest.mark.parametrize(
    "kind, targets, expected",
    [
        ("single_label", [0, 1, 2], [3, 0, 1]),
        ("multi_label", [(0, 1), (), (2,)], [(0, 3), (), (1,)]),
        ("token", [(0, 2, 0), (1,)], [(3, 1, 3), (0,)]),
    ],
)
def test_class_ids_become_those_of_the_model(kind, targets, expected):
    task = task_of(kind, targets)
    moved = relabelled(task, ("y", "z", "w", "x"), "model")
    assert [row["target"] for row in moved.rows("test")] == expected
    assert moved.labels == ("y", "z", "w", "x")
    assert moved.unscored_labels == ("y",)
    assert relabelled(task, task.labels, "model") is task


def test_labels_that_the_model_lacks_are_refused():
    with pytest.raises(TaskError, match="does not know the labels x, z; it knows y"):
        relabelled(task_of("single_label", [0]), ("y",), "model")
    with pytest.raises(TaskError, match="does not know"):
        relabelled(task_of("single_label", [0]), ("LABEL_0", "LABEL_1"), "model")


def test_kinds_without_class_names_stay_as_they_are(tmp_path):
    task = load_task(write_task(tmp_path / "task"))
    span = Task(
        "q",
        "span",
        (),
        (),
        {
            "test": (
                {
                    "text": "who",
                    "context": "ada",
                    "target": ({"text": "ada", "start": 0},),
                },
            )
        },
    )
    assert relabelled(span, ("LABEL_0", "LABEL_1"), "model") is span
    assert relabelled(task, LABELS, "model") is task
