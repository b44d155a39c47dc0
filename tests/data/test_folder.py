import gzip
import json
import os
import warnings
from dataclasses import replace

import pytest

from fusion_jax.data.folder import load_task, write_task
from fusion_jax.data.task import Task, TaskError

ROWS = [
    {"text": "the sun is up", "label": "good"},
    {"text": "rain again", "label": "bad"},
    {"text": "a red kettle", "label": "good"},
]
LABELS = ["bad", "good"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz"])
def test_every_form_of_a_split_reads_alike(make_folder, ending):
    content = ROWS
    if ".csv" in ending:
        content = "text,label\r\n" + "".join(
            f'"{r["text"]}",{r["label"]}\r\n' for r in ROWS
        )
    folder = make_folder(
        {
            f"train{ending}": content,
            f"validation{ending}": content,
            "labels.json": LABELS,
            "notes.txt": "no split",
        }
    )
    task = load_task(folder)
    assert (task.name, task.kind, task.labels) == (
        "toy",
        "single_label",
        ("bad", "good"),
    )
    assert list(task.splits) == ["train", "dev"]
    assert task.splits["train"][1] == {"text": "rain again", "target": 0}


def test_lines_end_at_newline_alone(make_folder):
    rows = [{"text": "before\x85after\u2028end", "label": "good"}]
    folder = make_folder(
        {
            "train.jsonl": json.dumps(rows[0], ensure_ascii=False) + "\n\n",
            "labels.json": LABELS,
        }
    )
    assert load_task(folder).splits["train"][0]["text"] == rows[0]["text"]


KINDS = {
    "single_label": {"text": "a", "label": "x", "labels": ["x", "y"]},
    "multi_label": {"text": "a", "labels": ["y", "x"]},
    "token": {"tokens": ["a", "b"], "tags": ["x", "y"]},
    "span": {"text": "who", "context": "ada ran", "answers": ["ada"]},
    "choice": {
        "text": "who",
        "context": "ada",
        "label": "bo",
        "choices": ["ada", "bo"],
    },
    "text_to_text": {"text": "a", "target": "b"},
}
TARGETS = {
    "single_label": 0, "multi_label": (0, 1), "token": (0, 1),
    "span": ({"text": "ada", "start": 0},), "choice": 1, "text_to_text": "b",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_inferred_and_the_target_read(make_folder, kind):
    folder = make_folder({"train.jsonl": [KINDS[kind]], "labels.json": ["x", "y"]})
    task = load_task(folder)
    assert task.kind == kind
    assert task.splits["train"][0]["target"] == TARGETS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_reads_back_equal(make_folder, tmp_path, kind):
    folder = make_folder(
        {
            "train.jsonl": [KINDS[kind]] * 2,
            "test.jsonl": [KINDS[kind]],
            "labels.json": ["x", "y"],
            "task.json": {"metrics": ["accuracy"], "decision": "softmax:0.1"},
        }
    )
    task = load_task(folder)
    written = load_task(write_task(task, tmp_path / "copy"), name="toy")
    assert written == replace(task, origin=written.origin)
    assert not list(tmp_path.glob(".copy*"))


def test_csv_lists_and_numbers_are_read(make_folder):
    text = 'text,labels\r\nhello,good|bad\r\nbye,"[""bad""]"\r\n'
    folder = make_folder({"train.csv": text, "labels.json": LABELS})
    assert [r["target"] for r in load_task(folder).splits["train"]] == [(0, 1), (0,)]
    folder = make_folder(
        {"train.csv": "text,label\nhello,1\nbye,0\n", "labels.json": LABELS}, "numbers"
    )
    assert [r["target"] for r in load_task(folder).splits["train"]] == [1, 0]


def test_task_json_names_columns_filters_rows_and_maps_labels(make_folder):
    rows = [
        {"sentence": "one", "stars": 5, "task": "t4"},
        {"sentence": "two", "stars": 1, "task": "t4"},
        {"sentence": "three", "stars": 3, "task": "t4"},
        {"sentence": "four", "stars": 5, "task": "t2"},
    ]
    options = {
        "columns": {"text": "sentence"}, "label": "stars", "where": {"task": "t4"},
        "label_map": {"5": "good", "1": "bad", "3": None}, "metrics": ["f1_macro"],
    }  # fmt: skip
    folder = make_folder(
        {"train.jsonl": rows, "labels.json": LABELS, "task.json": options}
    )
    task = load_task(folder)
    assert [(r["text"], r["target"]) for r in task.splits["train"]] == [
        ("one", 1), ("two", 0)]  # fmt: skip
    assert task.metrics == ("f1_macro",)
    other = load_task(folder, overrides={"where": {"task": ["t2", "t9"]}})
    assert [r["text"] for r in other.splits["train"]] == ["four"]


def test_labels_come_from_train_where_no_list_is_given(make_folder):
    folder = make_folder({"train.jsonl": ROWS})
    assert load_task(folder).labels == ("bad", "good")


DIALOGUES = [
    {"dialogue_id": "d1", "entities": ["@ent0", "@ent1"], "utterances": [
        {"speakers": ["Ada", "Bo"], "utterance": "who ran ?"},
        {"speakers": "", "utterance": "( rain )"},
        {"uid": 7, "speakers": "@ent1", "tokens": "the cat ran home"}]},
    {"dialogue_id": "d2", "turns": ["Ada: sun", "Bo: rain"]},
]  # fmt: skip
TEXT = "Ada Bo: who ran ?\n( rain )\n@ent1: the cat ran home"


def test_rows_are_joined_with_their_dialogue_and_its_entities(make_folder):
    rows = [{"text": "@placeholder ran", "label": "@ent1", "dialogue_id": "d1"}]
    folder = make_folder(
        {"train.jsonl": rows, "dialogues.jsonl.gz": DIALOGUES, "labels.json": ["@ent0"]}
    )
    task = load_task(folder)
    assert (task.kind, task.num_labels, task.labels) == ("choice", 2, ())
    assert task.splits["train"][0] == {
        "text": "@placeholder ran", "context": TEXT, "choices": ("@ent0", "@ent1"),
        "target": 1, "group": "d1",
    }  # fmt: skip
    pair = [{"x": "Ada", "y": "Bo", "label": "a", "dialogue_id": "d2"}]
    folder = make_folder({"train.jsonl": pair, "dialogues.jsonl": DIALOGUES}, "pair")
    row = load_task(folder).splits["train"][0]
    assert (row["text"], row["text_pair"]) == ("Ada", "Bo")
    assert row["context"] == "Ada: sun\nBo: rain"


def test_answers_are_found_by_turn_speaker_and_word(make_folder):
    answers = [
        {"answer_text": "the cat", "utterance_id": 7, "inner_start": 0, "inner_end": 1},
        {"answer_text": "Ada Bo", "utterance_id": 0, "is_speaker": True},
        {"answer_text": "ran home", "utterance_id": 7},
        {"answer_text": "@ent1", "utterance_id": 7},
        {"answer_text": "Ada_Bo", "utterance_id": 0},
        {"answer_text": "moon", "utterance_id": 0},
    ]
    rows = [{"text": "who ?", "answers": answers, "dialogue_id": "d1"}]
    folder = make_folder({"train.jsonl": rows, "dialogues.jsonl": DIALOGUES})
    found = load_task(folder).splits["train"][0]["target"]
    expected = [
        (t, TEXT.find(t))
        for t in ("the cat", "Ada Bo", "ran home", "@ent1", "Ada Bo", "moon")
    ]
    assert [(a["text"], a["start"]) for a in found] == expected


def test_squad_answers_are_read(make_folder):
    row = {
        "text": "who",
        "context": "the cat ran",
        "answers": {"text": ["cat"], "answer_start": [4]},
    }
    folder = make_folder({"train.jsonl": [row]})
    target = load_task(folder).splits["train"][0]["target"]
    assert target == ({"text": "cat", "start": 4},)


def test_speaker_and_mention_become_part_of_the_text(make_folder):
    row = {
        "text": "is he home ?",
        "speaker": "Ada",
        "mention": "he",
        "start": 1,
        "end": 2,
        "label": "a",
        "scene_id": None,
        "dialogue_id": "d9",
    }
    folder = make_folder({"train.jsonl": [row]})
    assert load_task(folder).splits["train"][0] == {
        "text": "Ada: is * he * home ?", "target": 0, "group": "d9"}  # fmt: skip


def test_a_partial_train_counts_only_when_asked_for(make_folder):
    folder = make_folder({"train_partial.jsonl": ROWS, "dev.jsonl": ROWS})
    assert list(load_task(folder).splits) == ["dev"]
    assert list(load_task(folder, use_partial=True).splits) == ["train", "dev"]
    folder = make_folder({"train.jsonl": ROWS, "train_partial.jsonl": ROWS}, "both")
    assert len(load_task(folder, use_partial=True).splits["train"]) == 6
    folder = make_folder({"train_partial.jsonl": ROWS}, "alone")
    with pytest.raises(TaskError, match="use_partial"):
        load_task(folder)


def test_all_bad_rows_are_reported_together_by_file_and_line(make_folder):
    train = [
        json.dumps(ROWS[0]),
        "{not json",
        json.dumps({"text": "a", "label": "worse"}),
        json.dumps({"label": "good"}),
        json.dumps({"text": 3, "label": "good"}),
        json.dumps(["a"]),
        json.dumps({"text": "a", "label": True}),
    ]
    folder = make_folder(
        {
            "train.jsonl": "\n".join(train) + "\n",
            "labels.json": LABELS,
            "dev.csv": "text,label\na,good,extra\nb\n",
        }
    )
    with pytest.raises(TaskError) as caught:
        load_task(folder)
    message = str(caught.value)
    for part in (
        "8 problems",
        "train.jsonl:2: not JSON",
        "train.jsonl:3: unknown label 'worse'; labels.json has bad, good",
        "train.jsonl:4: no 'text'",
        "train.jsonl:5: 'text' is int",
        "train.jsonl:6: not a JSON object",
        "train.jsonl:7: label True",
        "dev.csv:2: more cells",
        "dev.csv:3: fewer cells",
        str(folder),
    ):
        assert part in message


def test_bytes_that_are_no_text_are_reported_by_line(make_folder):
    folder = make_folder({"labels.json": LABELS})
    good = json.dumps(ROWS[0]).encode()
    (folder / "train.jsonl").write_bytes(good + b'\n{"text": "\xff"}\n')
    with pytest.raises(TaskError, match=r"train\.jsonl:2: not UTF-8"):
        load_task(folder)


def test_a_cut_off_gzip_file_is_named(make_folder):
    folder = make_folder({"train.jsonl.gz": ROWS * 50, "labels.json": LABELS})
    path = folder / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TaskError, match=r"train\.jsonl\.gz: the gzip file is damaged"):
        load_task(folder)


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "no task here"),
        ({"train.jsonl": ""}, "train.jsonl is empty"),
        ({"train.jsonl": ROWS, "test.jsonl": "\n"}, "test.jsonl is empty"),
        ({"train.csv": "text,label\n"}, "train.csv is empty"),
        ({"train.jsonl": ROWS, "train.csv": "text\na\n"}, "one split in two forms"),
        ({"dev.jsonl": ROWS, "validation.jsonl": ROWS}, "one split in two forms"),
        ({"train.jsonl": [{"text": "a"}]}, "no kind fits the columns text"),
        ({"train.jsonl": ROWS, "labels.json": {"a": 1}}, "must be a list"),
        ({"train.jsonl": ROWS, "labels.json": ["a", "a"]}, "occurs twice"),
        ({"train.jsonl": ROWS, "task.json": {"metric": "f1"}}, "option 'metric'"),
        ({"train.jsonl": ROWS, "task.json": {"kind": "qa"}}, "kind 'qa' is not one of"),
        ({"train.jsonl": ROWS, "task.json": {"columns": {"txt": "a"}}}, "'txt'"),
        ({"train.jsonl": ROWS, "task.json": "{"}, "task.json: not JSON"),
        ({"train.jsonl": ROWS, "task.json": {"where": {"a": "b"}}}, "none of its 3"),
        ({"train.jsonl": [{"text": "a", "label": "x", "dialogue_id": "d7"}],
          "dialogues.jsonl": DIALOGUES}, "'d7' is not in the dialogues"),
        ({"train.jsonl": ROWS, "dialogues.jsonl": [{"dialogue_id": "d"}]},
         "dialogues.jsonl:1"),
        ({"train.jsonl": [{"tokens": ["a"], "tags": ["x", "y"]}]}, "1 tokens but"),
        ({"train.jsonl": [{"text": "w", "answers": [{"text": "a", "start": 2}],
                           "context": "bcd"}]}, "does not stand at offset 2"),
        ({"train.jsonl": [{"text": "w", "label": "c", "choices": ["a", "b"]}]},
         "'c' is not one of its choices"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_read_says_why(make_folder, files, message):
    folder = make_folder(files)
    with pytest.raises(TaskError, match=message) as caught:
        load_task(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(TaskError, match="absent: no such folder"):
        load_task(tmp_path / "absent")


def test_labels_that_train_lacks_are_warned_of(make_folder):
    folder = make_folder(
        {"train.jsonl": [ROWS[0]], "dev.jsonl": ROWS, "labels.json": LABELS}
    )
    with pytest.warns(UserWarning, match="no training row has the labels bad"):
        load_task(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_task(make_folder({"dev.jsonl": ROWS, "labels.json": LABELS}, "no_train"))


def test_shots_are_drawn_while_loading(make_folder):
    folder = make_folder({"train.jsonl": ROWS * 10, "labels.json": LABELS})
    assert len(load_task(folder, shots=6).splits["train"]) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_writing_where_one_may_not_leaves_nothing(tmp_path):
    task = Task(
        "toy", "single_label", ("a",), (), {"test": ({"text": "", "target": 0},)}
    )
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="no permission"):
        write_task(task, tmp_path / "copy")


def test_a_failed_write_keeps_the_folder_that_was_there(tmp_path):
    rows = ({"text": "a", "target": 0},)
    task = Task("toy", "single_label", ("a",), (), {"test": rows})
    write_task(task, tmp_path / "copy")
    bad = Task("toy", "text_to_text", (), (), {"test": ({"text": "a", "target": {1}},)})
    with pytest.raises(TypeError):
        write_task(bad, tmp_path / "copy")
    assert load_task(tmp_path / "copy").splits["test"] == rows
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_gzip_files_are_streamed_by_line(tmp_path):
    # Ten thousand rows pass without any of them being wrong.
    folder = tmp_path / "many"
    folder.mkdir()
    with gzip.open(folder / "train.jsonl.gz", "wt") as file:
        for i in range(10_000):
            file.write(json.dumps({"text": f"row {i}", "label": "ab"[i % 2]}) + "\n")
    assert len(load_task(folder).splits["train"]) == 10_000
