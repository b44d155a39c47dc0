import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fusion_jax.data.feta.build import build_tasks
from fusion_jax.data.feta.scene_order import EPISODES, Open, scene_name, scene_order
from fusion_jax.data.feta.splits import SPLITS_FILE, read_splits, split_scenes
from fusion_jax.data.feta.tasks import FETA_TASKS
from fusion_jax.data.feta_friends import load_feta_friends
from fusion_jax.data.task import TaskError

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FUSION_JAX_DATA") or ROOT.parent / "shared" / "data")
RAW = SHARED.parent / "raw" / "feta_friends"
SCRIPT = ROOT / "scripts" / "prepare_feta_friends.py"

ORDER = scene_order({})
SPLITS = split_scenes(ORDER.order)
# One scene of each part, early enough to be found by name alone.
SCENES = {
    "fs_train": min(SPLITS.fs_train),
    "train": min(SPLITS.train - SPLITS.fs_train),
    "fs_dev": min(SPLITS.fs_dev),
    "test": min(SPLITS.test),
}
OPENINGS = (
    "The gardener lost his ladder",
    "Our boat has a hole",
    "My violin needs new strings",
    "That parrot learned to whistle",
)
TURNS = {
    scene: [("Ann Lee", f"{words} behind the house."), ("Bob", f"{words}? Oh no.")]
    for scene, words in zip(SCENES.values(), OPENINGS, strict=True)
}


def tokens(text):
    return text.replace(".", " .").replace("?", " ?").split()


def numbers(scene):
    return int(scene[1:3]), int(scene[5:7]), int(scene[9:11])


def utterances(scene, **annotations):
    return [
        {
            "utterance_id": f"{scene}_u{number:03d}",
            "speakers": [speaker],
            "transcript": text,
            "tokens": [tokens(text)],
            **{key: make(number) for key, make in annotations.items()},
        }
        for number, (speaker, text) in enumerate(TURNS.get(scene, ()), start=1)
    ]


def season_file(scenes, **annotations):
    return json.dumps(
        {
            "season_id": "x",
            "episodes": [
                {
                    "episode_id": "e",
                    "scenes": [
                        {
                            "scene_id": scene,
                            "utterances": utterances(scene, **annotations),
                        }
                        for scene in scenes
                    ],
                }
            ],
        }
    )


def csv_text(columns, rows):
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def meld_text(scenes):
    columns = [
        "Sr No.",
        "Utterance",
        "Speaker",
        "Emotion",
        "Sentiment",
        "Dialogue_ID",
        "Utterance_ID",
        "Season",
        "Episode",
        "StartTime",
        "EndTime",
    ]
    return csv_text(
        columns,
        [
            {
                "Utterance": text,
                "Speaker": speaker,
                "Emotion": "joy",
                "Sentiment": "x",
                "Dialogue_ID": dialogue,
                "Utterance_ID": number,
                "Season": numbers(scene)[0],
                "Episode": numbers(scene)[1],
            }
            for dialogue, scene in enumerate(scenes)
            for number, (speaker, text) in enumerate(TURNS[scene])
        ],
    )


def emory_copy_text(scenes):
    columns = [
        "Utterance",
        "Speaker",
        "Emotion",
        "Scene_ID",
        "Utterance_ID",
        "Season",
        "Episode",
        "Start_Time",
        "End_Time",
    ]
    return csv_text(
        columns,
        [
            {
                "Utterance": text,
                "Speaker": repr([speaker]),
                "Emotion": "Sad",
                "Scene_ID": numbers(scene)[2],
                "Utterance_ID": number,
                "Season": numbers(scene)[0],
                "Episode": numbers(scene)[1],
            }
            for scene in scenes
            for number, (speaker, text) in enumerate(TURNS[scene], 1)
        ],
    )


def reading_items(scenes):
    return [
        {
            "scene_id": scene,
            "query": "@placeholder tells @ent01 .",
            "answer": "@ent00",
            "utterances": [
                {"speakers": "@ent00", "tokens": " ".join(tokens(text))}
                for _, text in TURNS[scene]
            ],
        }
        for scene in scenes
    ]


def reading_zip(scenes):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for part in ("Trn", "Dev", "Tst"):
            items = reading_items(scenes) if part == "Trn" else []
            archive.writestr(f"json-25/{part}-25.json", json.dumps(items))
    return data.getvalue()


def questions_text(scenes):
    return json.dumps(
        {
            "version": "2",
            "data": [
                {
                    "title": scene,
                    "paragraphs": [
                        {
                            "utterances:": [
                                {
                                    "uid": number,
                                    "speakers": [speaker],
                                    "utterance": " ".join(tokens(text)),
                                }
                                for number, (speaker, text) in enumerate(TURNS[scene])
                            ],
                            "qas": [
                                {
                                    "id": "q",
                                    "question": "Where is it ?",
                                    "answers": [
                                        {
                                            "answer_text": "the house",
                                            "utterance_id": 0,
                                            "is_speaker": False,
                                            "inner_start": 0,
                                            "inner_end": 1,
                                        },
                                        {
                                            "answer_text": "Bob",
                                            "utterance_id": 1,
                                            "is_speaker": True,
                                            "inner_start": -1,
                                            "inner_end": -1,
                                        },
                                    ],
                                }
                            ],
                        }
                    ],
                }
                for scene in scenes
            ],
        }
    )


def personality_text(scenes):
    traits = dict(zip(("cAGR", "cCON", "cEXT", "cOPN", "cNEU"), "10010", strict=True))
    return csv_text(
        ["", "scene_id", "text", "character", *traits],
        [
            {
                "": 0,
                "scene_id": scene.removeprefix("s"),
                "character": "Ann Lee",
                "text": f"<b>{scene}(0) for Ann Lee</b><br><br>"
                + "<br><br>".join(f"<b>{who}</b>: {text}" for who, text in turns)
                + "<br><br>(Rain.)<br><br>",
                **traits,
            }
            for scene, turns in TURNS.items()
            if scene in scenes
        ],
    )


def relation_text(dialogues):
    pair = {
        "x": "Speaker 1",
        "y": "Tom",
        "x_type": "PER",
        "y_type": "PER",
        "rid": [1],
        "r": ["per:friends"],
        "t": [""],
    }
    alias = {**pair, "r": ["per:alternate_names"]}
    return json.dumps([[turns, [pair, alias]] for turns in dialogues])


def raw_files():
    """Every file of a partial copy: the large train files are not there."""
    first, second, third, fourth = SCENES.values()
    return {
        "declare-lab/MELD": {
            "data/MELD/train_sent_emo.csv": meld_text([first, second]),
            "data/MELD/dev_sent_emo.csv": meld_text([third]),
            "data/MELD/test_sent_emo.csv": meld_text([fourth]),
            "data/emorynlp/emorynlp_train_final.csv": emory_copy_text([first, second]),
        },
        "emorynlp/emotion-detection": {
            "json/emotion-detection-dev.json": season_file(
                [third], emotion=lambda _: "Mad"
            ),
            "json/emotion-detection-tst.json": season_file(
                [fourth], emotion=lambda _: "Neutral"
            ),
        },
        "emorynlp/character-identification": {
            f"json/character-identification-{part}.json": season_file(
                scenes,
                character_entities=lambda number: [
                    [[0, 1, "Ross Geller", "Ann"]] if number == 1 else []
                ],
            )
            for part, scenes in (("dev", [first, second, third]), ("tst", [fourth]))
        },
        "Mayer123/Multiparty-Dialog-RC": {
            "dialog_rc_data/json-25.zip": reading_zip(SCENES.values()),
        },
        "emorynlp/FriendsQA": {
            "dat/friendsqa_dev.json": questions_text(SCENES.values()),
        },
        "emorynlp/personality-detection": {
            "CSV/friends-personality.csv": personality_text(SCENES.values()),
        },
        "nlpdata/dialogre": {
            f"data_v2/en/data/{split}.json": relation_text(
                [["Speaker 1: I met Tom."]] * 20
            )
            for split in ("train", "dev", "test")
        },
    }


def write_raw(folder, files):
    for repository, contents in files.items():
        for path, text in contents.items():
            target = folder / repository.replace("/", "__") / path
            target.parent.mkdir(parents=True, exist_ok=True)
            data = text if isinstance(text, bytes) else text.encode()
            target.write_bytes(data)
    return folder


def pack(folder):
    for repository in sorted(folder.iterdir()):
        with tarfile.open(f"{repository}.tar.gz", "w:gz") as archive:
            archive.add(repository, repository.name)
        for path in sorted(repository.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        repository.rmdir()


def prepare(*arguments):
    spec = importlib.util.spec_from_file_location("prepare_feta_friends", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "raw", raw_files())


def sizes(task):
    return [len(task.splits.get(split, ())) for split in ("train", "dev", "test")]


EXPECTED = {
    "friends_emory_emotion": [2, 2, 2],
    "friends_meld": [2, 2, 2],
    "friends_reading": [1, 1, 1],
    "friends_charid": [1, 1, 1],
    "friends_qa": [1, 1, 1],
    "friends_personality": [1, 1, 1],
    "friends_relation": [2, 2, 20],
}


def test_all_seven_tasks_are_built_and_load_again(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare("--raw", raw, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "scene order: rebuilt, 110 of 3107 positions uncertain" in printed
    assert "emorynlp/emotion-detection json/emotion-detection-trn.json" in printed
    assert "863 / 207 / 1912" in printed
    few = load_feta_friends(out)
    assert {name: sizes(task) for name, task in few.items()} == EXPECTED
    full = load_feta_friends(out, few_shot=False)
    assert sizes(full["friends_meld"]) == [4, 2, 2]
    assert sizes(full["friends_relation"]) == [20, 20, 20]
    for name, fixed in FETA_TASKS.items():
        assert few[name].metrics == fixed.metrics
        assert few[name].labels == fixed.labels
        assert few[name].decision == fixed.decision
        assert few[name].unscored_labels == fixed.unscored_labels
    assert read_splits(out / SPLITS_FILE) == SPLITS
    files = {path.name for path in (out / "full" / "friends_qa").iterdir()}
    assert {
        "train.jsonl.gz",
        "dev.jsonl.gz",
        "test.jsonl.gz",
        "task.json",
        "labels.json",
    } <= files
    assert not list(out.rglob(".*"))
    built = json.loads((out / "build.json").read_text())
    assert built["uncertain_positions"] == 110


def test_what_is_written_is_what_was_built(raw, tmp_path):
    out = tmp_path / "out"
    assert prepare("--raw", raw, "--out", out) == 0
    built = build_tasks(raw)
    for mode, few_shot in (("full", False), ("few_shot", True)):
        loaded = load_feta_friends(out, few_shot=few_shot)
        for name, task in built.tasks[mode].items():
            assert loaded[name].splits == task.splits
    row = built.tasks["few_shot"]["friends_qa"].splits["train"][0]
    for answer in row["target"]:
        start = answer["start"]
        assert row["context"][start : start + len(answer["text"])] == answer["text"]
    assert [answer["text"] for answer in row["target"]] == ["the house", "Bob"]
    row = built.tasks["few_shot"]["friends_personality"].splits["train"][0]
    assert row["context"].endswith("Bob: The gardener lost his ladder? Oh no. (Rain.)")
    assert row["target"] == (0, 3)


def test_running_twice_gives_equal_bytes(raw, tmp_path):
    for name in ("one", "two", "two"):
        assert prepare("--raw", raw, "--out", tmp_path / name) == 0
    one, two = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    )
    assert one == two


def test_archives_are_read_like_folders(raw):
    folders = build_tasks(raw)
    pack(raw)
    archives = build_tasks(raw)
    assert not any(path.is_dir() for path in raw.iterdir())
    for mode in folders.tasks:
        for name, task in folders.tasks[mode].items():
            assert archives.tasks[mode][name].splits == task.splits
    assert archives.missing == folders.missing


@pytest.mark.parametrize("repository", sorted(raw_files()))
def test_a_missing_repository_takes_only_its_tasks(tmp_path, repository, capsys):
    files = raw_files()
    gone = files.pop(repository)
    raw = write_raw(tmp_path / "raw", files)
    assert prepare("--raw", raw, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    for path in gone:
        assert Path(path).name in printed
    tasks = load_feta_friends(tmp_path / "out", few_shot=False)
    lost = set(FETA_TASKS) - set(tasks)
    assert (
        lost
        == {
            "declare-lab/MELD": {"friends_meld", "friends_emory_emotion"},
            "emorynlp/emotion-detection": set(),
            "emorynlp/character-identification": {"friends_charid"},
            "Mayer123/Multiparty-Dialog-RC": {"friends_reading"},
            "emorynlp/FriendsQA": {"friends_qa"},
            "emorynlp/personality-detection": {"friends_personality"},
            "nlpdata/dialogre": {"friends_relation"},
        }[repository]
    )
    if lost:
        assert "not built: " in printed


def test_nothing_to_build_is_an_error(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", {"nlpdata/dialogre": {"README.md": "x"}})
    assert prepare("--raw", raw, "--out", tmp_path / "out") == 1
    assert "nothing could be built" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_folder_is_an_error(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    assert prepare("--raw", tmp_path / "raw", "--out", tmp_path / "out") == 1
    assert "declare-lab__MELD" in capsys.readouterr().err
    assert prepare("--raw", tmp_path / "no", "--out", tmp_path / "out") == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_damaged_archive_is_named(raw, tmp_path, capsys):
    pack(raw)
    archive = raw / "emorynlp__FriendsQA.tar.gz"
    archive.write_bytes(archive.read_bytes()[:100])
    assert prepare("--raw", raw, "--out", tmp_path / "out") == 1
    assert "emorynlp__FriendsQA.tar.gz: damaged" in capsys.readouterr().err
    archive.write_text("not an archive")
    with pytest.raises(TaskError, match=r"FriendsQA\.tar\.gz: damaged"):
        build_tasks(raw)


@pytest.mark.parametrize(
    "path, old, new, message",
    [
        (
            "declare-lab__MELD/data/MELD/dev_sent_emo.csv",
            "Emotion",
            "Feeling",
            r"MELD data/MELD/dev_sent_emo\.csv: no column Emotion",
        ),
        (
            "emorynlp__personality-detection/CSV/friends-personality.csv",
            "cOPN",
            "open",
            r"friends-personality\.csv: no column cOPN",
        ),
        (
            "emorynlp__emotion-detection/json/emotion-detection-dev.json",
            "speakers",
            "who",
            r"emotion-detection-dev\.json, scene s01.*: no key 'speakers'",
        ),
        (
            "emorynlp__FriendsQA/dat/friendsqa_dev.json",
            "paragraphs",
            "parts",
            "friendsqa_dev.json, s01.*: the file's form has changed",
        ),
        (
            "nlpdata__dialogre/data_v2/en/data/dev.json",
            '"x"',
            '"head"',
            r"dev\.json: dialogue 0 is not in the expected form",
        ),
        (
            "emorynlp__character-identification/json/character-identification-dev.json",
            "[[0, 1, ",
            "[[0, 99, ",
            "does not fit its sentence",
        ),
        (
            "declare-lab__MELD/data/MELD/dev_sent_emo.csv",
            ",joy,",
            ",glee,",
            "unknown emotion 'glee'",
        ),
        ("emorynlp__FriendsQA/dat/friendsqa_dev.json", "{", "", "not JSON"),
    ],
)
def test_a_changed_file_is_one_clear_error(raw, path, old, new, message):
    file = raw / path
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(TaskError, match=message):
        build_tasks(raw)


def test_ten_transcripts_give_the_exact_split(raw):
    told = raw / "emorynlp__character-mining" / "json"
    told.mkdir(parents=True)
    names = []
    for season, episodes in enumerate(EPISODES, start=1):
        counts = []
        for entry in episodes:
            is_open = isinstance(entry, Open)
            first = entry.total - 3 * (entry.episodes - 1) if is_open else entry
            counts += [first] + ([3] * (entry.episodes - 1) if is_open else [])
        scenes = [
            scene_name(season, episode, scene + 1)
            for episode, count in enumerate(counts, start=1)
            for scene in range(count)
        ]
        names += scenes
        (told / f"friends_season_{season:02d}.json").write_text(
            json.dumps(
                {
                    "season_id": f"s{season:02d}",
                    "episodes": [
                        {
                            "episode_id": "e",
                            "scenes": [
                                {"scene_id": scene, "utterances": utterances(scene)}
                                for scene in scenes
                            ],
                        }
                    ],
                }
            )
        )
    # Relations too are placed by their words, once all scenes are known.
    spoken = [[f"Speaker 1: {text}" for _, text in turns] for turns in TURNS.values()]
    (raw / "nlpdata__dialogre" / "data_v2" / "en" / "data" / "train.json").write_text(
        relation_text([*spoken, spoken[0] + spoken[1]])
    )
    built = build_tasks(raw)
    assert built.order.exact
    assert built.order.uncertain == 0
    assert built.splits == split_scenes(names)
    assert {p: len(s) for p, s in built.splits._asdict().items()} == {
        "train": 2175,
        "dev": 466,
        "test": 466,
        "fs_train": 217,
        "fs_dev": 46,
    }
    # 40 rows of dialogues said in no scene, and one that runs over two scenes.
    assert built.unassigned["friends_relation"] == 41
    scenes = {
        row["group"]
        for part in built.tasks["full"]["friends_relation"].splits.values()
        for row in part
    }
    assert scenes == set(names) & set(TURNS)
    assert not any("character-mining" in line for line in built.missing)


def test_annotated_transcripts_go_before_the_copies(raw):
    told = raw / "emorynlp__character-mining" / "json"
    told.mkdir(parents=True)
    season = max(SCENES.values())[:3]
    length = sum(
        e.total if isinstance(e, Open) else e for e in EPISODES[int(season[1:]) - 1]
    )
    ours = [scene for scene in SCENES.values() if scene.startswith(season)]
    fill = [f"{season}_e99_c{number:03d}" for number in range(length - len(ours))]
    (told / f"friends_season_{season[1:]}.json").write_text(
        season_file([*ours, *fill], emotion=lambda _: ["Powerful", "Sad"])
    )
    rows = build_tasks(raw).tasks["full"]["friends_emory_emotion"].splits
    labels = FETA_TASKS["friends_emory_emotion"].labels
    found = {
        row["group"]: labels[row["target"]] for part in rows.values() for row in part
    }
    # Dev and test have official files; the train scenes only copies ('Sad').
    assert found[SCENES["fs_dev"]] == "mad"
    assert found[SCENES["train"]] == "powerful"


def test_the_script_runs_as_a_command(raw, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--raw", raw, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "friends_relation" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(
    not RAW.is_dir(), reason="no raw files beside the folder of FUSION_JAX_DATA"
)
def test_the_public_files_give_the_expected_rows():
    built = build_tasks(RAW)
    assert {name: sizes(task) for name, task in built.tasks["few_shot"].items()} == {
        "friends_emory_emotion": [699, 174, 1609],
        "friends_meld": [447, 104, 1094],
        "friends_reading": [831, 159, 2231],
        "friends_charid": [634, 132, 2128],
        "friends_qa": [137, 32, 379],
        "friends_personality": [54, 15, 110],
        "friends_relation": [488, 160, 1457],
    }
    few, pooled = built.tasks["few_shot"], load_feta_friends(SHARED)
    for name in ("friends_personality", "friends_relation"):
        assert pooled[name].splits["test"] == few[name].splits["test"]
