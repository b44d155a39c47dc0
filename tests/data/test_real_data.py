import collections
import warnings

import pytest

from fusion_jax.data.folder import load_task
from fusion_jax.data.task import TaskError

KINDS = {
    "friends_qa": "span", "friends_reading": "choice",
    "friends_personality": "multi_label", "friends_relation": "single_label",
    "friends_charid": "single_label",
    "mrpc": "single_label", "goemotions": "single_label", "ner_ai": "token",
}  # fmt: skip


def test_every_task_folder_loads_without_code_of_its_own(real_data):
    folders = sorted(path for path in real_data.iterdir() if path.is_dir())
    kinds, refused = {}, {}
    for folder in folders:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no training row has")
            try:
                task = load_task(folder, use_partial=True)
            except TaskError as error:
                refused[folder.name] = str(error)
                continue
        kinds[folder.name] = task.kind
        assert "train" in task.splits
    # Transcripts without a question are no task.
    assert set(refused) <= {"friends_scenes"}, refused
    assert all(kinds[name] == kind for name, kind in KINDS.items() if name in kinds)
    assert len(kinds) >= 77 or len(kinds) == len(folders) - len(refused)


def test_answers_of_the_dialogue_questions_are_found_in_their_text(real_data):
    if not (real_data / "friends_qa").is_dir():
        pytest.skip("no friends_qa in the folder of real data")
    task = load_task(real_data / "friends_qa", use_partial=True)
    found = collections.Counter(
        answer["start"] >= 0
        for rows in task.splits.values() for row in rows for answer in row["target"]
    )  # fmt: skip
    assert found[True] / found.total() > 0.995


def test_one_of_several_tasks_in_a_folder_is_chosen_by_a_filter(real_data):
    if not (real_data / "arsc_baby").is_dir():
        pytest.skip("no arsc_baby in the folder of real data")
    whole = load_task(real_data / "arsc_baby")
    parts = [
        load_task(real_data / "arsc_baby", overrides={"where": {"task": t}})
        for t in ("t2", "t4", "t5")
    ]
    for split, rows in whole.splits.items():
        assert sum(len(p.splits[split]) for p in parts) == len(rows)
