import json

import pytest

from tests.small_models import LABELS, sentences, write_model, write_task


def test_the_test_split_is_scored_with_its_interval(command, place):
    code, out, error = command(
        "evaluate", place / "classifier", "--data", place / "opinion"
    )
    assert code == 0, error
    head, _, row, note = out.splitlines()
    assert head.split()[:2] == ["split", "score"] and row.startswith("test")
    assert note == "8 rows of opinion"

    code, out, _ = command(
        "evaluate", place / "classifier", "--data", place / "opinion", "--json"
    )
    record = json.loads(out)
    assert (record["split"], record["rows"]) == ("test", 8)
    assert record["metric"] == "accuracy + f1_macro"
    low, high = record["interval"]
    assert 0 <= low <= record["score"] <= high <= 1
    assert f"{record['score']:.3f}" in row


def test_another_split_can_be_asked_for(command, place):
    code, out, _ = command(
        "evaluate",
        place / "classifier",
        "--data",
        place / "opinion",
        "--split",
        "train",
        "--json",
        "--quiet",
    )
    assert (code, json.loads(out)["rows"]) == (0, 12)


def test_labels_in_another_order_give_the_same_score(command, place, tmp_path):
    turned = write_task(tmp_path / "turned", labels=LABELS[::-1])
    records = [
        json.loads(
            command("evaluate", place / "classifier", "--data", folder, "--json")[1]
        )
        for folder in (place / "opinion", turned)
    ]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], abs=1e-6)


def test_a_label_that_the_model_does_not_know_is_named(command, place, tmp_path):
    rows = [*sentences(4), {"text": "the film", "label": "neither"}]
    task = write_task(tmp_path / "three", labels=(*LABELS, "neither"), train=rows)
    code, _, error = command("evaluate", place / "classifier", "--data", task)
    assert code == 1
    assert "does not know the labels neither; it knows negative, positive" in error


def test_a_model_without_label_names_is_taken_in_the_tasks_order(
    command, place, tmp_path
):
    labels = ("LABEL_0", "LABEL_1")
    model = write_model(tmp_path / "nameless", kind="single_label", labels=labels)
    arguments = ("evaluate", model, "--data", place / "opinion", "--json")
    code, out, error = command(*arguments)
    named = json.loads(
        command(
            "evaluate", place / "classifier", "--data", place / "opinion", "--json"
        )[1]
    )
    assert code == 0
    assert json.loads(out)["metrics"] == named["metrics"]
    assert error.startswith("warning: ")
    assert "does not name its labels" in error
    assert command(*arguments, "--quiet")[2] == ""


def test_an_encoder_without_a_head_is_refused(command, place):
    code, _, error = command("evaluate", place / "encoder", "--data", place / "opinion")
    assert code == 1
    assert "not one for single_label" in error


def test_a_split_that_is_not_there_is_named(command, place, tmp_path):
    task = write_task(tmp_path / "untested", test=False)
    code, _, error = command(
        "evaluate", place / "classifier", "--data", task, "--split", "test"
    )
    assert code == 1
    assert "has no test split, only train, dev" in error
    code, out, _ = command("evaluate", place / "classifier", "--data", task, "--json")
    assert json.loads(out)["split"] == "dev"
