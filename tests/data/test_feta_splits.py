import json

import pytest

from fusion_jax.data.feta.splits import (
    NUM_SCENES,
    SceneSplits,
    assign_rows,
    own_split,
    public,
    read_splits,
    sample_groups,
    split_positions,
    split_scenes,
)


def test_positions_are_the_published_ones():
    parts = split_positions(NUM_SCENES)
    sizes = {part: len(places) for part, places in parts.items()}
    assert sizes == {
        "train": 2175,
        "dev": 466,
        "test": 466,
        "fs_train": 217,
        "fs_dev": 46,
    }
    assert parts["test"][:10] == [16, 17, 20, 38, 65, 72, 77, 81, 87, 97]
    assert parts["fs_train"][:6] == [0, 9, 42, 89, 90, 103]
    assert parts["fs_dev"][:6] == [35, 64, 111, 207, 338, 351]


def test_parts_are_disjoint_and_few_shot_lies_inside():
    parts = {name: set(places) for name, places in split_positions().items()}
    assert parts["train"] | parts["dev"] | parts["test"] == set(range(NUM_SCENES))
    assert not parts["train"] & parts["dev"]
    assert not (parts["train"] | parts["dev"]) & parts["test"]
    assert parts["fs_train"] < parts["train"]
    assert parts["fs_dev"] < parts["dev"]


def test_an_open_position_changes_no_other_scene():
    order = [f"scene {number}" for number in range(200)]
    whole = split_scenes(order)
    gap = split_scenes(
        [None if number == 17 else name for number, name in enumerate(order)]
    )
    for part in SceneSplits._fields:
        assert getattr(gap, part) == getattr(whole, part) - {"scene 17"}


def test_rows_follow_their_scene():
    splits = SceneSplits(*map(frozenset, ("ab", "cd", "e", "a", "c")))
    rows = [{"group": scene, "text": scene} for scene in ["a", "b", "c", "d", "e", "f"]]
    rows.append({"group": "", "text": "no scene"})
    full = assign_rows(rows, splits, few_shot=False)
    few = assign_rows(rows, splits, few_shot=True)
    names = {s: "".join(r["group"] for r in part) for s, part in full.splits.items()}
    assert names == {"train": "ab", "dev": "cd", "test": "e"}
    names = {s: "".join(r["group"] for r in part) for s, part in few.splits.items()}
    assert names == {"train": "a", "dev": "c", "test": "e"}
    assert full.unassigned == few.unassigned == 2
    known = assign_rows(rows, splits, few_shot=True, known_test=frozenset("fa"))
    # A list that names the scene is preferred to the mark.
    assert [r["group"] for r in known.splits["test"]] == ["e", "f"]
    assert known.unassigned == 1


def test_own_split_takes_whole_dialogues_and_leaves_test_alone():
    rows = [
        {"group": f"{split}_{number // 3}", "_split": split, "n": number}
        for split in ("train", "dev", "test")
        for number in range(90)
    ]
    full = own_split(rows, few_shot=False, seed=0).splits
    few = own_split(rows, few_shot=True, seed=0).splits
    assert {s: len(part) for s, part in full.items()} == dict.fromkeys(full, 90)
    assert {s: len(part) for s, part in few.items()} == {
        "train": 9,
        "dev": 9,
        "test": 90,
    }
    assert few == own_split(rows, few_shot=True, seed=0).splits
    assert few != own_split(rows, few_shot=True, seed=1).splits
    assert set(public(few)["train"][0]) == {"group", "n"}


def test_sampled_groups_depend_on_the_set_alone():
    names = [f"d{number}" for number in range(40)]
    assert sample_groups(names, 3) == sample_groups(reversed(names), 3)
    assert len(sample_groups(["one"], 0)) == 1


def test_split_file_round_trip_and_its_faults(tmp_path):
    path = tmp_path / "splits.json"
    splits = SceneSplits(*map(frozenset, ("ab", "cd", "e", "a", "c")))
    path.write_text(json.dumps(splits.to_json()))
    assert read_splits(path) == splits
    path.write_text(json.dumps(splits._replace(dev=frozenset("bc")).to_json()))
    with pytest.raises(ValueError, match=r"splits\.json: train and dev share b"):
        read_splits(path)
    path.write_text(json.dumps(splits._replace(fs_dev=frozenset("e")).to_json()))
    with pytest.raises(ValueError, match="fs_dev holds e, which dev does not"):
        read_splits(path)
    path.write_text('{"train": []}')
    with pytest.raises(ValueError, match="no list dev, test, fs_train, fs_dev"):
        read_splits(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not a readable JSON file"):
        read_splits(path)
