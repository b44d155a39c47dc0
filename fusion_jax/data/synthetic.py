"""A seeded generator of small, related dialogue tasks in plain English.

Two or three people talk. Every utterance has eight hidden attributes (emotion, speech
act, intent, politeness, topic, formality, stance, urgency); each task asks for one of
them. A scene has a mood, and the attributes follow it as closely as the tasks are
related, so what one task teaches is of use to the others.

`python -m fusion_jax.data.synthetic --out DIR` writes the tasks as folders.
"""

import argparse
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion_jax.data.folder import write_task
from fusion_jax.data.synthetic_words import (
    ACTS,
    CUES,
    INTENTS,
    MOODS,
    NAMES,
    SPOKEN,
    TOPICS,
    VAGUE,
)
from fusion_jax.data.task import Row, Task

LABELS: Mapping[str, tuple[str, ...]] = {
    "emotion": tuple(CUES["emotion"]),
    "speech_act": tuple(ACTS),
    "intent": tuple(INTENTS),
    "politeness": tuple(CUES["politeness"]),
    "topic": tuple(TOPICS),
    "formality": tuple(CUES["formality"]),
    "stance": tuple(CUES["stance"]),
    "urgency": tuple(CUES["urgency"]),
}
"""Task name -> class names; the tasks are made in this order."""

# At relatedness 1 an attribute follows the mood this often; the rest is chance, so
# that the mood never gives a label away.
FOLLOWS_MOOD = 0.8
# At relatedness 1 an utterance shows an attribute that it is not asked for this often.
SHOWS_OTHERS = 0.5
# Training rows never use these of a class's phrases, by rank: every third, about 29 %
# of what dev and test say. A model has to know what words mean, as a bag of words does
# not.
HELD_OUT = (1, 4, 7, 10)

Attributes = dict[str, str]


@dataclass(frozen=True)
class Knobs:
    """How the tasks are made.

    Attributes:
      relatedness: in [0, 1]; how often an utterance also shows what the other tasks
        ask for, and how closely all of it follows the mood of the scene.
      ambiguity: share of utterances that do not say what they are asked for; only
        mood, context and the other cues speak.
      noise: share of training labels that are replaced by another class.
    """

    relatedness: float = 0.7
    ambiguity: float = 0.15
    noise: float = 0.05

    def __post_init__(self) -> None:
        """Raises `ValueError` if a knob is outside [0, 1]."""
        for name in ("relatedness", "ambiguity", "noise"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in [0, 1]")


def generate(
    seed: int,
    *,
    num_tasks: int = 6,
    relatedness: float = Knobs.relatedness,
    ambiguity: float = Knobs.ambiguity,
    noise: float = Knobs.noise,
    train: int = 200,
    dev: int = 128,
    test: int = 400,
) -> dict[str, Task]:
    """Makes related single-label dialogue tasks.

    Labels are balanced. The same seed gives the same tasks; a task does not depend on
    how many others are made, nor a split on the size of a later one. No utterance
    occurs in two splits of a task.

    Args:
      seed: also decides which phrases are common and which are rare.
      num_tasks: 1 to 8, in the order of `LABELS`.
      relatedness: see `Knobs`.
      ambiguity: see `Knobs`.
      noise: see `Knobs`; dev and test labels are true.
      train: training rows of each task.
      dev: dev rows.
      test: test rows.

    Returns:
      name -> Task.

    Raises:
      ValueError: a knob or a number of tasks or rows out of its range.
    """
    if not 1 <= num_tasks <= len(LABELS):
        raise ValueError(f"num_tasks={num_tasks} must lie in 1 to {len(LABELS)}")
    sizes = {"train": train, "dev": dev, "test": test}
    if min(sizes.values()) < 1:
        raise ValueError(f"every split needs a row, not {sizes}")
    knobs = Knobs(relatedness, ambiguity, noise)
    ranks = _phrase_ranks(seed)
    tasks = {}
    for name in list(LABELS)[:num_tasks]:
        seen: set[str] = set()
        splits = {}
        for split, size in sizes.items():
            heard = _heard_in_training(name, ranks) if split == "train" else ranks
            writer = _Writer(_generator(seed, name, split), heard, knobs)
            splits[split] = _rows(writer, name, split, size, seen)
        tasks[name] = Task(
            name=name,
            kind="single_label",
            labels=LABELS[name],
            metrics=("accuracy",),
            splits=splits,
            origin=f"synthetic seed {seed}",
        )
    return tasks


def _rows(
    writer: "_Writer", name: str, split: str, size: int, seen: set[str]
) -> tuple[Row, ...]:
    labels = LABELS[name]
    generator = writer.generator
    wanted = generator.permutation(np.arange(size) % len(labels))
    rows = []
    for number, label in enumerate(wanted):
        row = writer.row(name, labels[label])
        while row["text"] in seen:
            row = writer.row(name, labels[label])
        seen.add(row["text"])
        target = int(label)
        if split == "train" and generator.random() < writer.knobs.noise:
            target = int((label + generator.integers(1, len(labels))) % len(labels))
        rows.append({**row, "target": target, "group": f"{split}_{number}"})
    return tuple(rows)


class _Writer:
    """Writes scenes: draws moods, attributes and phrases, and joins them."""

    def __init__(
        self,
        generator: np.random.Generator,
        ranks: Mapping[tuple[str, ...], np.ndarray],
        knobs: Knobs,
    ):
        self.generator = generator
        self.knobs = knobs
        self._cumulative = {
            phrases: np.cumsum(1 / (places + 1.0)) for phrases, places in ranks.items()
        }

    def row(self, asked: str, label: str) -> Row:
        """A scene whose last utterance has the label for the asked attribute."""
        mood = self._mood_of(asked, label)
        names = self.generator.choice(len(NAMES), 2, replace=False)
        turns = int(self.generator.integers(0, 3))
        # The others speak first, in the same mood but with attributes of their own:
        # evidence, and sometimes misleading.
        context = []
        for before in range(turns, 0, -1):
            said = self._say(self._attributes(mood), None)
            context.append(f"{NAMES[names[before % 2]]}: {said}")
        attributes = {**self._attributes(mood), asked: label}
        row: Row = {"text": f"{NAMES[names[0]]}: {self._say(attributes, asked)}"}
        if context:
            row["context"] = "\n".join(context)
        return row

    def _mood_of(self, asked: str, label: str) -> str:
        """Bayes: p(mood | label) is in proportion to p(label | mood)."""
        follow = self.knobs.relatedness * FOLLOWS_MOOD
        chance = (1 - follow) / len(LABELS[asked])
        weights = np.array(
            [
                chance + (label in likely[asked]) * follow / len(likely[asked])
                for likely in MOODS.values()
            ]
        )
        return list(MOODS)[self.generator.choice(len(MOODS), p=weights / weights.sum())]

    def _attributes(self, mood: str) -> Attributes:
        follow = self.knobs.relatedness * FOLLOWS_MOOD
        drawn = {}
        for name, labels in LABELS.items():
            near = self.generator.random() < follow
            choices = MOODS[mood][name] if near else labels
            drawn[name] = choices[self.generator.integers(len(choices))]
        return drawn

    def _say(self, attributes: Attributes, asked: str | None) -> str:
        """An utterance; the asked attribute is told unless it stays ambiguous."""
        silent = asked is not None and self.generator.random() < self.knobs.ambiguity
        told = {
            name
            for name in CUES
            if name != asked
            and self.generator.random() < self.knobs.relatedness * SHOWS_OTHERS
        }
        if asked is not None and asked in CUES and not silent:
            told.add(asked)
        hidden = asked if silent else None
        parts = [
            self._cue(a, attributes)
            for a in ("stance", "formality", "emotion")
            if a in told
        ]
        core = self._core(attributes, hidden)
        if "politeness" in told:
            mark = core[-1]
            core = f"{core[:-1]}, {self._cue('politeness', attributes)}{mark}"
        parts.append(core[0].upper() + core[1:])
        if "urgency" in told:
            parts.append(self._cue("urgency", attributes))
        text = " ".join(parts)
        if attributes["formality"] == "slang" and "formality" in told:
            for written, spoken in SPOKEN:
                if self.generator.random() < 0.5:
                    text = text.replace(f"{written} ", f"{spoken} ")
        return text

    def _core(self, attributes: Attributes, hidden: str | None) -> str:
        """The sentence in the middle: a speech act around an intent around a topic."""
        act = attributes["speech_act"]
        frame = "about {vp}." if hidden == "speech_act" else self._pick(ACTS[act])
        if hidden == "intent":
            phrase, slot = "deal with {thing}", "thing"
        else:
            phrase = self._pick(INTENTS[attributes["intent"]])
            slot = "event" if "{event}" in phrase else "thing"
        nouns = VAGUE if hidden == "topic" else TOPICS[attributes["topic"]]
        phrase = phrase.format(**{slot: self._pick(nouns[slot])})
        if hidden == "speech_act":
            # A bare gerund would need grammar; a quoted note does not.
            return f"the note says: {phrase}."
        return frame.format(vp=phrase)

    def _cue(self, name: str, attributes: Attributes) -> str:
        return self._pick(CUES[name][attributes[name]])

    def _pick(self, phrases: tuple[str, ...]) -> str:
        """A phrase by Zipf's law over this seed's ranks: a few common, many rare."""
        sums = self._cumulative[phrases]
        drawn = self.generator.random() * sums[-1]
        return phrases[int(np.searchsorted(sums, drawn, "right"))]


def _phrases(name: str) -> list[tuple[str, ...]]:
    """The lists of phrases that tell the classes of an attribute."""
    if name == "topic":
        return [nouns for topic in TOPICS.values() for nouns in topic.values()]
    return list({**CUES, "speech_act": ACTS, "intent": INTENTS}[name].values())


def _phrase_ranks(seed: int) -> dict[tuple[str, ...], np.ndarray]:
    """Which phrases are common: a permutation of each list, equal for all tasks."""
    lists = [phrases for name in LABELS for phrases in _phrases(name)]
    return {
        phrases: _generator(seed, *phrases).permutation(len(phrases)).astype(float)
        for phrases in [*lists, *VAGUE.values()]
    }


def _heard_in_training(
    name: str, ranks: Mapping[tuple[str, ...], np.ndarray]
) -> dict[tuple[str, ...], np.ndarray]:
    """The ranks with the held-out phrases of the asked attribute at infinity."""
    own = {
        phrases: np.where(np.isin(ranks[phrases], HELD_OUT), np.inf, ranks[phrases])
        for phrases in _phrases(name)
    }
    return {**ranks, **own}


def _generator(seed: int, *names: str) -> np.random.Generator:
    words = [seed, zlib.crc32("\n".join(names).encode())]
    return np.random.Generator(np.random.PCG64(words))


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the tasks as folders and says where."""
    parser = argparse.ArgumentParser(
        prog="python -m fusion_jax.data.synthetic",
        description="Write related synthetic dialogue tasks as task folders.",
    )
    parser.add_argument("--out", required=True, help="folder for the task folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-tasks", type=int, default=6, help="1 to 8")
    for name in ("relatedness", "ambiguity", "noise"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Knobs, name))
    for name, size in (("train", 200), ("dev", 128), ("test", 400)):
        parser.add_argument(f"--{name}", type=int, default=size, help="rows of a task")
    options = vars(parser.parse_args(arguments))
    out, seed = Path(options.pop("out")), options.pop("seed")
    try:
        tasks = generate(seed, **options)
    except ValueError as error:
        parser.error(str(error))
    for name, task in tasks.items():
        folder = write_task(task, out / name)
        rows = ", ".join(f"{len(r)} {split}" for split, r in task.splits.items())
        print(f"{folder}: {len(task.labels)} classes, {rows}")


if __name__ == "__main__":
    main()
