import gzip
import json
import os
from pathlib import Path

import pytest

from fusion_jax.data.feta.scene_order import scene_order
from fusion_jax.data.feta.splits import SPLITS_FILE, split_scenes
from fusion_jax.data.feta.tasks import FETA_TASKS, rows_table
from fusion_jax.data.feta_friends import load_feta_friends
from fusion_jax.data.task import TaskError

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FUSION_JAX_DATA") or ROOT.parent / "shared" / "data")

SPLITS = split_scenes(scene_order({}).order)
FEW = min(SPLITS.fs_train)
TRAIN = min(SPLITS.train - SPLITS.fs_train)
DEV = min(SPLITS.fs_dev)
TEST = min(SPLITS.test)
OPEN = "s08_e15_c04"
SCENES = (FEW, TRAIN, DEV, TEST, OPEN)


def write(folder, files):
    folder.mkdir(parents=True)
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(lines)


def emory():
    rows = []
    for scene in SCENES:
        for number in (2, 1):
            rows.append(
                {
                    "text": f"Line {number}.",
                    "speaker": "Ann, Bob",
                    "context": "",
                    "label": "mad",
                    "scene_id": scene,
                    "utterance_id": number,
                    "feta_test_scene": scene == OPEN,
                }
            )
    return {"train": rows[:3], "dev": rows[3:8], "test": rows[8:]}


def meld():
    lines = [
        ("Ann", "You came.", "joy"),
        ("Ann", "Sit.", "neutral"),
        ("Bob", "No.", "anger"),
    ]
    rows = [
        {
            "text": text,
            "speaker": speaker,
            "label": label,
            "dialogue_id": f"d{scene}",
            "utterance_id": number,
            "scene_id": scene,
            "feta_test_scene": None,
        }
        for scene in (*SCENES, None)
        for number, (speaker, text, label) in enumerate(lines)
    ]
    return {"train": rows[:9], "test": rows[9:]}


def reading():
    dialogues = [
        {
            "dialogue_id": scene,
            "scene_id": scene,
            "entities": ["@ent00", "@ent01"],
            "utterances": [{"speakers": "@ent00", "tokens": "Where is @ent01 ?"}],
        }
        for scene in SCENES
    ]
    rows = [
        {
            "dialogue_id": scene,
            "scene_id": scene,
            "text": "@placeholder hides .",
            "label": "@ent01",
        }
        for scene in SCENES
    ]
    return {"train": rows, "dialogues": dialogues}


def charid():
    def row(scene, number, context, entities):
        return {
            "text": "Is he late ?",
            "speaker": "Ann Lee",
            "context": context,
            "mention": "he",
            "start": 1,
            "end": 2,
            "label": "plural",
            "labels": [],
            "entities": entities,
            "scene_id": scene,
            "utterance_id": f"{scene}_u{number:03d}",
        }

    rows = []
    for scene in SCENES:
        rows.append(row(scene, 2, "Bob: I do n't know .", ["Ross Geller", "Bob"]))
        rows.append(row(scene, 4, "Ann Lee: Is he late ?", ["A Cook"]))
    partial = [row("s01_e01_p000", 3, "", ["Joey Tribbiani"])]
    return {"dev": rows[:5], "test": rows[5:], "train_partial": partial}


def questions():
    dialogues = [
        {
            "dialogue_id": scene,
            "utterances": [
                {"uid": 1, "speakers": ["Ann"], "utterance": "The cat sleeps ."},
            ],
        }
        for scene in SCENES
    ]
    rows = [
        {
            "id": f"{scene}_Who",
            "dialogue_id": scene,
            "text": "Who sleeps ?",
            "answers": [{"answer_text": "The cat", "utterance_id": 1}],
        }
        for scene in SCENES
    ]
    return {"dev": rows, "dialogues": dialogues}


def personality():
    return {
        "train": [
            {
                "text": "Ann: Hi.\nBob: Bye.",
                "text_pair": "Ann",
                "labels": ["NEU", "AGR"],
                "scene_id": scene,
            }
            for scene in SCENES
        ]
    }


def relation():
    files = {
        "dialogues": [
            {"dialogue_id": f"{split}_{n}", "turns": ["Speaker 1: I met Tom."]}
            for split in ("train", "dev", "test")
            for n in range(20)
        ]
    }
    for split in ("train", "dev", "test"):
        files[split] = [
            {"dialogue_id": f"{split}_{n}", "x": "Speaker 1", "y": y, "labels": labels}
            for n in range(20)
            for y, labels in (
                ("Tom", ["per:friends", "per:alternate_names"]),
                ("Tim", ["per:alternate_names"]),
            )
        ]
    return files


MAKERS = {
    "friends_emory_emotion": emory,
    "friends_meld": meld,
    "friends_reading": reading,
    "friends_charid": charid,
    "friends_qa": questions,
    "friends_personality": personality,
    "friends_relation": relation,
}


@pytest.fixture
def folder(tmp_path):
    for name, make in MAKERS.items():
        write(tmp_path / name, make())
    (tmp_path / SPLITS_FILE).write_text(json.dumps(SPLITS.to_json()))
    return tmp_path


def sizes(task):
    return [len(task.splits.get(split, ())) for split in ("train", "dev", "test")]


def test_rows_are_pooled_and_split_by_scene(folder):
    few = load_feta_friends(folder)
    assert list(few) == list(FETA_TASKS)
    assert {name: sizes(task) for name, task in few.items()} == {
        # The open scene is marked as a test scene in the emotion rows.
        "friends_emory_emotion": [2, 2, 4],
        "friends_meld": [2, 2, 2],
        "friends_reading": [1, 1, 1],
        "friends_charid": [2, 2, 2],
        "friends_qa": [1, 1, 1],
        "friends_personality": [1, 1, 1],
        "friends_relation": [2, 2, 20],
    }
    full = load_feta_friends(folder, few_shot=False)
    assert sizes(full["friends_meld"]) == [4, 2, 2]
    assert sizes(full["friends_relation"]) == [20, 20, 20]
    assert full["friends_qa"].splits["test"] == few["friends_qa"].splits["test"]


def test_rows_have_the_encoder_form(folder):
    rows = {
        name: task.splits["train"] for name, task in load_feta_friends(folder).items()
    }
    assert rows["friends_emory_emotion"][0] == {
        "text": "Ann Bob: Line 2.",
        "context": "Ann Bob: Line 1.",
        "target": 1,
        "group": FEW,
    }
    assert [row["text"] for row in rows["friends_meld"]] == [
        "Ann: You came. Sit.",
        "Bob: No.",
    ]
    assert rows["friends_charid"] == (
        {
            "text": "Who does 'he' refer to in the phrase 'he late?'?",
            "context": "Bob: I don't know. Ann Lee: Is he late?",
            "target": 5,
            "group": FEW,
        },
        {
            "text": "Who does 'he' refer to in the phrase 'he late?'?",
            "context": "Bob: I don't know. Ann Lee: Is he late? Ann Lee: Is he late?",
            "target": 6,
            "group": FEW,
        },
    )
    assert rows["friends_qa"][0]["target"] == ({"text": "The cat", "start": 5},)
    assert rows["friends_personality"][0] == {
        "text": "Ann",
        "context": "Ann: Hi. Bob: Bye.",
        "target": (0, 4),
        "group": FEW,
    }
    assert rows["friends_relation"][0]["target"] == (8,)
    assert not any(
        key.startswith("_") for part in rows.values() for row in part for key in row
    )


def test_tasks_have_the_benchmarks_metrics(folder):
    tasks = load_feta_friends(folder)
    for name, fixed in FETA_TASKS.items():
        assert tasks[name].metrics == fixed.metrics
        assert tasks[name].kind == fixed.kind
        assert tasks[name].decision == fixed.decision
    assert len(tasks["friends_relation"].unscored_labels) == 5
    assert tasks["friends_relation"].decision == "softmax:0.1"


def test_only_relation_depends_on_the_seed(folder):
    one, two = load_feta_friends(folder, seed=1), load_feta_friends(folder, seed=2)
    different = {name for name in one if one[name].splits != two[name].splits}
    assert different == {"friends_relation"}


def test_targets_choose_and_must_be_there(folder):
    assert list(load_feta_friends(folder, targets=["question_answering"])) == [
        "friends_qa"
    ]
    (folder / "friends_qa").rename(folder / "elsewhere")
    assert "friends_qa" not in load_feta_friends(folder)
    with pytest.raises(FileNotFoundError, match="no task folder friends_qa"):
        load_feta_friends(folder, targets=["friends_qa"])


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither few_shot/ .* nor feta_"):
        load_feta_friends(tmp_path)


def test_bad_rows_are_reported_together(folder):
    rows = personality()["train"]
    del rows[1]["labels"]
    rows[3]["labels"] = ["BRAVE"]
    (folder / "friends_personality" / "train.jsonl.gz").unlink()
    (folder / "friends_personality" / "train.jsonl").write_text(
        "\n".join(json.dumps(row) for row in rows) + "\n{\n"
    )
    with pytest.raises(TaskError) as caught:
        load_feta_friends(folder, targets=["friends_personality"])
    message = str(caught.value)
    assert "3 problems" in message
    assert "train.jsonl:2: no column 'labels'" in message
    assert "train.jsonl:4: " in message
    assert "train.jsonl:6: not JSON" in message


def test_a_dialogue_that_is_missing_is_named(folder):
    (folder / "friends_qa" / "dialogues.jsonl.gz").unlink()
    with pytest.raises(TaskError, match=f"dialogue '{FEW}' is not in dialogues"):
        load_feta_friends(folder, targets=["friends_qa"])


def test_lists_of_other_scenes_are_an_error(folder):
    empty = SPLITS._replace(train=frozenset({"x"}), fs_train=frozenset({"x"}))
    (folder / SPLITS_FILE).write_text(json.dumps(empty.to_json()))
    with pytest.raises(ValueError, match="no row lies in a train scene"):
        load_feta_friends(folder, targets=["friends_qa"])


@pytest.mark.skipif(
    not (SHARED / "friends_meld").is_dir(),
    reason="no Friends task folders; set FUSION_JAX_DATA to their parent",
)
def test_published_rows_fall_in_the_expected_splits():
    few = load_feta_friends(SHARED)
    assert {name: sizes(task) for name, task in few.items()} == {
        "friends_emory_emotion": [699, 174, 1609],
        "friends_meld": [600, 141, 1233],
        "friends_reading": [831, 159, 2231],
        "friends_charid": [634, 132, 2128],
        "friends_qa": [226, 70, 647],
        "friends_personality": [54, 15, 110],
        "friends_relation": [488, 160, 1457],
    }
    answers = [a for row in few["friends_qa"].splits["test"] for a in row["target"]]
    assert sum(answer["start"] < 0 for answer in answers) <= 0.01 * len(answers)
    assert "831  159  2231  950 / 208 / 2284" in rows_table(few)
