import io
import json

import pytest

from tests.small_models import write_model


def test_a_line_a_text_with_label_and_probability(command, place):
    code, out, error = command(
        "predict",
        place / "classifier",
        "--text",
        "the film was good",
        "--text",
        "bad",
        "--quiet",
    )
    assert (code, error) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    assert len(lines) == 2
    for label, chance in lines:
        assert label in ("negative", "positive")
        assert 0.5 <= float(chance) <= 1


def test_files_stdin_and_options_agree(command, place, tmp_path, monkeypatch):
    texts = ["the film was good", "so dull a film", "we liked it"]
    rows = "".join(json.dumps({"text": text, "label": "?"}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "rows.txt").write_text("\n\n".join(texts) + "\n")
    (tmp_path / "rows.csv").write_text("text\n" + "\n".join(texts) + "\n")
    model = place / "classifier"
    expected = command("predict", model, *(f"--text={text}" for text in texts))[1]
    assert expected.count("\n") == 3
    for name in ("rows.jsonl", "rows.txt", "rows.csv"):
        assert command("predict", model, "--input", tmp_path / name)[1] == expected
    for text in (rows, "\n".join(texts)):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert command("predict", model)[1] == expected


def test_json_gives_every_labels_probability(command, place):
    out = command("predict", place / "classifier", "--text", "good", "--json")[1]
    record = json.loads(out)
    assert record["probability"] == max(record["probabilities"].values())
    assert record["probabilities"][record["label"]] == record["probability"]
    assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_no_rows_are_no_lines(command, place, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert command("predict", place / "classifier")[:2] == (0, "")


def test_bad_rows_are_named_together(command, place, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"text": "good"}\n{"words": "good"}\n{"text": 3}\n'
    )
    code, out, error = command(
        "predict", place / "classifier", "--input", tmp_path / "rows.jsonl"
    )
    assert (code, out) == (1, "")
    assert "2 problems" in error
    assert "rows.jsonl:2: no 'text' (there is words)" in error
    assert "rows.jsonl:3" in error
    (tmp_path / "rows.jsonl").write_text('{"text": \n')
    error = command(
        "predict", place / "classifier", "--input", tmp_path / "rows.jsonl"
    )[2]
    assert "rows.jsonl:1: not JSON" in error


def test_a_bare_encoder_and_a_stray_context_are_refused(command, place):
    code, _, error = command("predict", place / "encoder", "--text", "good")
    assert code == 1 and "without a head" in error
    code, _, error = command("predict", place / "classifier", "--context", "good")
    assert code == 2 and "--context goes with --text" in error


def test_a_multi_label_model_prints_its_set_by_the_rule(command, tmp_path):
    names = ("praise", "blame", "place")
    model = write_model(tmp_path / "tags", kind="multi_label", labels=names)
    out = command("predict", model, "--text", "good", "--decision", "sigmoid:0.999")[1]
    assert out == "-\t-\n"
    out = command("predict", model, "--text", "good", "--decision", "softmax:0.01")[1]
    labels, chances = out.strip().split("\t")
    assert labels == "praise,blame,place"
    assert sum(map(float, chances.split(","))) == pytest.approx(1, abs=0.002)
    code, _, error = command("predict", model, "--text", "good", "--decision", "all")
    assert code == 1 and "decision rule 'all'" in error


def test_a_token_model_tags_every_word(command, tmp_path):
    model = write_model(tmp_path / "names", kind="token", labels=("O", "B-who"))
    out = command("predict", model, "--text", "ada saw bo")[1]
    words, tags = zip(*(pair.split("/") for pair in out.split()), strict=True)
    assert words == ("ada", "saw", "bo")
    assert set(tags) <= {"O", "B-who"}


def test_a_span_model_answers_out_of_the_passage(command, tmp_path):
    model = write_model(tmp_path / "reader", kind="span")
    passage = "ada saw bo at home and bo sat in the film"
    out = command("predict", model, "--text", "who saw bo", "--context", passage)[1]
    answer, confidence = out.rstrip("\n").split("\t")
    assert answer and answer in passage
    float(confidence)
    code, _, error = command("predict", model, "--text", "who saw bo")
    assert code == 1 and "'context' is needed" in error


def test_a_choice_model_names_one_of_the_choices(command, tmp_path):
    model = write_model(tmp_path / "chooser", kind="choice")
    rows = [
        {"text": "who sat at home", "context": "ada saw bo", "choices": choices}
        for choices in (["ada", "bo"], ["film"])
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = command("predict", model, "--input", tmp_path / "rows.jsonl", "--json")[1]
    first, second = map(json.loads, out.splitlines())
    assert first["label"] in ("ada", "bo") and set(first["probabilities"]) == {
        "ada",
        "bo",
    }
    assert second["label"] == "film"
    assert second["probability"] == pytest.approx(1)
