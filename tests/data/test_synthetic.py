import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from fusion_jax.data.folder import load_task
from fusion_jax.data.synthetic import LABELS, Knobs, generate, main
from fusion_jax.data.synthetic_words import ACTS, CUES, INTENTS, MOODS, TOPICS
from fusion_jax.data.task import hash_task

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"train": 60, "dev": 24, "test": 36}


def bag_of_words(task):
    texts = {s: [r["text"] for r in rows] for s, rows in task.splits.items()}
    target = {s: [r["target"] for r in rows] for s, rows in task.splits.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=500)
    model.fit(words.fit_transform(texts["train"]), target["train"])
    return model.score(words.transform(texts["test"]), target["test"])


def test_the_seed_decides_everything():
    one, two = generate(3, **SIZES), generate(3, **SIZES)
    assert one == two
    assert list(one) == list(LABELS)[:6]
    assert {n: hash_task(t) for n, t in one.items()} != {
        n: hash_task(t) for n, t in generate(4, **SIZES).items()
    }
    # Pinned: another machine or library version must give the same rows.
    assert hash_task(one["emotion"])[:16] == "9d0d0faf4e9435af"


def test_a_task_does_not_depend_on_the_others_nor_train_on_the_size_of_test():
    all_tasks = generate(0, num_tasks=8, **SIZES)
    few = generate(0, num_tasks=2, **(SIZES | {"test": 12}))
    for name, task in few.items():
        for split in ("train", "dev"):
            assert task.splits[split] == all_tasks[name].splits[split]
        assert len(task.splits["test"]) == 12


def test_labels_are_balanced_and_no_utterance_is_in_two_splits():
    for task in generate(1, num_tasks=8, noise=0, **SIZES).values():
        for rows in task.splits.values():
            counts = Counter(row["target"] for row in rows)
            assert max(counts.values()) - min(counts.values()) <= 1
            assert len(counts) == len(task.labels)
        texts = [row["text"] for rows in task.splits.values() for row in rows]
        assert len(texts) == len(set(texts)) == sum(SIZES.values())


def test_noise_replaces_that_share_of_training_labels_only():
    sizes = {"train": 600, "dev": 30, "test": 30}
    clean = generate(0, num_tasks=1, noise=0, **sizes)["emotion"]
    noisy = generate(0, num_tasks=1, noise=1, **sizes)["emotion"]
    for split in ("dev", "test"):
        assert clean.splits[split] == noisy.splits[split]
    pairs = zip(clean.splits["train"], noisy.splits["train"], strict=True)
    assert all(a["target"] != b["target"] for a, b in pairs)


def test_without_ambiguity_every_utterance_tells_its_class():
    for task in generate(2, num_tasks=8, ambiguity=0, noise=0, **SIZES).values():
        if task.name not in CUES:
            continue
        for row in task.splits["test"]:
            # The end of a phrase survives capitals and the spelling of slang.
            cues = CUES[task.name][task.labels[row["target"]]]
            assert any(c.rstrip(".!?").split()[-1] in row["text"] for c in cues)


def test_relatedness_is_how_much_an_utterance_shows_of_the_other_tasks():
    def others(relatedness):
        task = generate(0, num_tasks=1, relatedness=relatedness, **SIZES)["emotion"]
        text = " ".join(r["text"] for r in task.splits["test"])
        cues = [c for n in ("stance", "urgency") for k in CUES[n].values() for c in k]
        return sum(text.count(cue) for cue in cues)

    counts = [others(r) for r in (0.0, 0.5, 1.0)]
    assert counts[0] == 0 < counts[1] < counts[2]


def test_moods_tie_the_attributes_together():
    def association(relatedness):
        task = generate(
            0, num_tasks=1, relatedness=relatedness, train=1, dev=1, test=600
        )["emotion"]
        angry = task.labels.index("anger")
        rude = tuple(CUES["politeness"]["rude"])
        hits = {True: [], False: []}
        for row in task.splits["test"]:
            shown = any(cue in row["text"] for cue in rude)
            hits[row["target"] == angry].append(shown)
        return np.mean(hits[True]) - np.mean(hits[False])

    assert association(1.0) > 0.15
    assert abs(association(0.0)) < 0.05


def test_tasks_can_be_learned_in_part_by_a_bag_of_words():
    scores = {n: bag_of_words(t) for n, t in generate(0, num_tasks=8).items()}
    chance = {name: 1 / len(labels) for name, labels in LABELS.items()}
    assert all(s > 1.5 * chance[n] for n, s in scores.items()), scores
    assert 0.5 < np.mean(list(scores.values())) < 0.8, scores
    assert max(scores.values()) < 0.9, scores


def test_the_words_fit_together():
    for name, labels in LABELS.items():
        for mood in MOODS.values():
            assert set(mood[name]) <= set(labels)
    assert all(f.count("{vp}") == 1 for frames in ACTS.values() for f in frames)
    for phrases in INTENTS.values():
        assert all(("{event}" in p) + ("{thing}" in p) == 1 for p in phrases)
    lists = [p for c in CUES.values() for p in c.values()] + [
        p for topic in TOPICS.values() for p in topic.values()
    ]
    phrases = [p for names in lists for p in names]
    assert len(phrases) == len(set(phrases)), "a phrase tells two classes"
    assert len(set(lists)) == len(lists)


def test_utterances_read_as_speech():
    for task in generate(0, num_tasks=8, **SIZES).values():
        for row in task.splits["train"]:
            for line in [row["text"], *row.get("context", "").splitlines()]:
                speaker, said = line.split(": ", 1)
                assert speaker.isalpha() and said[0].isupper()
                assert said[-1] in ".?!" and "{" not in said and "  " not in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_tasks": 9}, "num_tasks=9"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"relatedness": 1.5}, r"relatedness=1.5 must lie in \[0, 1\]"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"dev": 0}, "every split needs a row"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(0, **arguments)


def test_the_command_writes_folders_that_load_equal(tmp_path, capsys):
    main(
        [
            "--out",
            str(tmp_path),
            "--seed",
            "5",
            "--train",
            "20",
            "--dev",
            "10",
            "--test",
            "10",
            "--num-tasks",
            "2",
        ]
    )
    made = generate(5, num_tasks=2, train=20, dev=10, test=10)
    for name, task in made.items():
        assert hash_task(load_task(tmp_path / name)) == hash_task(task)
    assert "6 classes, 20 train, 10 dev, 10 test" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path), "--noise", "2"])
    assert caught.value.code == 2
    assert "noise=2.0" in capsys.readouterr().err


def test_the_command_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fusion_jax.data.synthetic",
         "--out", str(tmp_path / "o"), "--num-tasks", "1",
         "--train", "6", "--dev", "6", "--test", "6"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert "emotion" in done.stdout
    assert Knobs() == Knobs(0.7, 0.15, 0.05)
