import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from fusion_jax.data.hub import from_datasets
from fusion_jax.data.task import TaskError

STARS = ClassLabel(names=["1", "2", "5"])


def reviews(labels):
    return Dataset.from_dict(
        {"sentence": [f"row {i}" for i in range(len(labels))], "stars": labels},
        features=Features({"sentence": Value("string"), "stars": STARS}),
    )


def test_a_saved_data_set_becomes_a_task(tmp_path):
    made = DatasetDict(
        {
            "train": reviews([0, 1, 2]),
            "validation": reviews([2, 2]),
            "test": reviews([-1, -1]),
            "unsupervised": reviews([0]),
        }
    )
    made.save_to_disk(tmp_path / "reviews")
    with pytest.warns(UserWarning, match="labels of test are hidden"):
        task = from_datasets(
            tmp_path / "reviews", name="stars", text="sentence", label="stars"
        )
    # Numbers are positions in the feature's names, also where names are numbers.
    assert (task.name, task.kind, task.labels) == (
        "stars",
        "single_label",
        ("1", "2", "5"),
    )
    assert {s: [r["target"] for r in rows] for s, rows in task.splits.items()} == {
        "train": [0, 1, 2], "dev": [2, 2]}  # fmt: skip


def test_splits_filters_and_label_map_are_followed(tmp_path):
    made = Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": ["pos", "neg", "mixed"], "lang": ["e"] * 3}
    )
    DatasetDict({"all": made, "rest": made.select([0])}).save_to_disk(tmp_path / "d")
    task = from_datasets(
        tmp_path / "d", splits={"all": "train"}, label_map={"mixed": None},
        labels=["neg", "pos"], where={"lang": "e"}, metrics=["accuracy"],
    )  # fmt: skip
    assert [r["target"] for r in task.splits["train"]] == [1, 0]
    assert task.metrics == ("accuracy",)
    with pytest.raises(TaskError, match="has the splits all, rest"):
        from_datasets(tmp_path / "d")
    with pytest.raises(TaskError, match="several splits stand for train"):
        from_datasets(tmp_path / "d", splits={"all": "train", "rest": "train"})


def test_tags_and_label_lists_take_the_names_of_their_feature(tmp_path):
    tags = Features(
        {
            "tokens": Sequence(Value("string")),
            "ner_tags": Sequence(ClassLabel(names=["O", "B"])),
        }
    )
    rows = {"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}
    Dataset.from_dict(rows, features=tags).save_to_disk(tmp_path / "ner")
    task = from_datasets(tmp_path / "ner", columns={"tags": "ner_tags"})
    assert (task.kind, task.labels) == ("token", ("O", "B"))
    assert task.splits["train"][0]["target"] == (1, 0)


def test_squad_form_is_read_as_spans(tmp_path):
    rows = {
        "question": ["who"],
        "context": ["ada ran"],
        "answers": [{"text": ["ada"], "answer_start": [0]}],
    }
    Dataset.from_dict(rows).save_to_disk(tmp_path / "squad")
    task = from_datasets(tmp_path / "squad", text="question")
    assert task.kind == "span"
    assert task.splits["train"][0]["target"] == ({"text": "ada", "start": 0},)


def test_what_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match="nobody/nothing: the datasets library cannot"):
        from_datasets("nobody/nothing")
    Dataset.from_dict({"text": ["a"], "label": ["x"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(TaskError, match="train row 0: unknown label 'x'"):
        from_datasets(tmp_path / "d", labels=["y"])
    with pytest.raises(TaskError, match="unknown option 'metric'"):
        from_datasets(tmp_path / "d", metric="f1")
