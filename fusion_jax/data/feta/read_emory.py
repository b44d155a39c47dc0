"""Emory emotion: the official JSON files, else the copies that MELD's authors keep."""

import ast
from typing import Any

from fusion_jax.data.feta.instances import Turn, emotion_row, speaker_name
from fusion_jax.data.feta.raw_files import RawFiles
from fusion_jax.data.feta.scene_order import scene_name
from fusion_jax.data.feta.transcripts import Scene, scenes_of, spoken
from fusion_jax.data.task import TaskError

TASK = "friends_emory_emotion"
OFFICIAL = "emorynlp/emotion-detection"
COPY = "declare-lab/MELD"
_COLUMNS = (
    "Utterance",
    "Speaker",
    "Emotion",
    "Scene_ID",
    "Utterance_ID",
    "Season",
    "Episode",
)


def read_emory(raw: RawFiles, seasons: dict[int, list[Scene]]) -> list[dict[str, Any]]:
    """Rows of all emotion-annotated turns, each once.

    The official files come first, then transcripts that carry emotions, then the
    aligned copies (about three quarters of the turns).
    """
    scenes: dict[str, dict[int, tuple[Turn, str]]] = {}
    absent = []
    for part, name in (("trn", "train"), ("dev", "dev"), ("tst", "test")):
        official = scenes_of(raw, OFFICIAL, f"json/emotion-detection-{part}.json")
        if official is None:
            absent.append((part, name))
        for scene in official or ():
            scenes.setdefault(scene.name, _annotated(scene))
    for transcript in seasons.values():
        for scene in transcript:
            annotated = _annotated(scene)
            if any(label for _, label in annotated.values()):
                scenes.setdefault(scene.name, annotated)
    known = frozenset(scenes)
    for part, name in absent:
        copy = f"data/emorynlp/emorynlp_{name}_final.csv"
        rows = raw.csv(COPY, copy, _COLUMNS)
        raw.lost(
            OFFICIAL,
            f"json/emotion-detection-{part}.json",
            f"about three quarters of its turns are taken from {COPY} {copy}"
            if rows is not None
            else f"and no {COPY} {copy} to stand in for it",
        )
        for number, row in enumerate(rows or (), start=2):
            _note_copy(scenes, known, row, f"{COPY} {copy}:{number}")
    return [
        emotion_row(
            TASK, turn, [turns[n][0] for n in sorted(turns) if n < number], label, name
        )
        for name, turns in scenes.items()
        for number, (turn, label) in sorted(turns.items())
        if label
    ]


def _annotated(scene: Scene) -> dict[int, tuple[Turn, str]]:
    turns = {}
    for turn in spoken(scene):
        label = turn.record.get("emotion") or ""
        # The transcripts keep the label with the votes that led to it.
        label = label if isinstance(label, str) else label[0]
        turns[turn.number] = ((turn.speaker, turn.text), label.lower())
    return turns


def _note_copy(
    scenes: dict[str, dict[int, tuple[Turn, str]]],
    known: frozenset[str],
    row: dict[str, str],
    where: str,
) -> None:
    try:
        name = scene_name(*(int(row[c]) for c in ("Season", "Episode", "Scene_ID")))
        number = int(row["Utterance_ID"])
        speaker = speaker_name(ast.literal_eval(row["Speaker"]))
    except (ValueError, SyntaxError) as error:
        raise TaskError(f"{where}: not in the expected form ({error})") from error
    if name not in known:
        turns = scenes.setdefault(name, {})
        turns[number] = ((speaker, row["Utterance"]), row["Emotion"].lower())
