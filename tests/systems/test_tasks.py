"""Readers that make several tasks of one source."""

import numpy as np
import pytest

from fusion_jax.systems.tasks import read_tasks
from tests.small_models import sentences, write_task
from tests.systems.selection_tasks import write_rows


def test_a_folder_gives_several_tasks_by_its_column(tmp_path):
    folder = write_task(tmp_path / "stars", labels=("low", "high"))
    names = {"negative": "low", "positive": "high"}
    for split, count in (("train", 12), ("dev", 8), ("test", 8)):
        rows = [
            {**row, "label": names[row["label"]], "task": ("t2", "t4")[n // 2 % 3 == 2]}
            for n, row in enumerate(sentences(count))
        ]
        write_rows(folder, split, rows)
    told = {
        f"stars_{part}": {
            "folder": "stars",
            "where": {"task": part},
            "label_map": {"low": "negative", "high": "positive"},
            "labels": ["negative", "positive"],
        }
        for part in ("t2", "t4")
    }
    data = {"reader": "folders", "path": str(tmp_path), "tasks": told}
    read = read_tasks(data, tuple(told), 0)
    assert [task.name for task in read.values()] == list(told)
    assert len(read["stars_t2"].rows("train")) == 8
    assert len(read["stars_t4"].rows("train")) == 4
    assert read["stars_t2"].labels == ("negative", "positive")


def test_generated_domains_ask_one_question_in_other_words():
    data = {"reader": "synthetic_domains", "asks": "stance", "count": 4, "train": 60}
    read = read_tasks(data, (), 0)
    assert list(read) == [f"stance_{k}" for k in range(4)]
    assert len({task.labels for task in read.values()}) == 1
    words = [
        {word for row in task.rows("train") for word in row["text"].lower().split()}
        for task in read.values()
    ]
    shared = np.array([[len(a & b) / len(a | b) for b in words] for a in words])
    # Domains 0 and 1 have the same common phrases, as have 2 and 3.
    assert min(shared[0, 1], shared[2, 3]) > shared[:2, 2:].max()
    assert read_tasks(data, ("stance_3",), 0)["stance_3"] == read["stance_3"]
    with pytest.raises(ValueError, match="'mood' is none of emotion"):
        read_tasks({**data, "asks": "mood"}, (), 0)
