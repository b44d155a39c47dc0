"""Rows of unsplit task folders: one reader a task."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from fusion_jax.data.feta.instances import (
    Said,
    SpokenText,
    Turn,
    character_row,
    emotion_row,
    meld_rows,
    personality_row,
    question_row,
    reading_row,
    relation_row,
    speaker_name,
)
from fusion_jax.data.feta.tasks import FETA_TASKS
from fusion_jax.data.feta.wording import Words
from fusion_jax.data.task import TaskError

Rows = list[dict[str, Any]]
Reader = Callable[[dict[str, Any]], dict[str, Any] | None]


def _emory_reader(rows: Rows, _: dict) -> Reader:
    spoken: dict[str, dict[int, Turn]] = defaultdict(dict)
    for row in rows:
        if "scene_id" in row and "utterance_id" in row:
            spoken[row["scene_id"]][row["utterance_id"]] = (
                _speakers(row.get("speaker", "")),
                row.get("text", ""),
            )

    def read(row: dict[str, Any]) -> dict[str, Any]:
        turns, now = spoken[row["scene_id"]], row["utterance_id"]
        earlier = [turns[number] for number in sorted(turns) if number < now]
        return emotion_row(
            "friends_emory_emotion",
            (_speakers(row["speaker"]), row["text"]),
            earlier,
            row["label"],
            row["scene_id"],
        )

    return read


def _meld_reader(rows: Rows, _: dict) -> Reader:
    lines: dict[str, list[Said]] = defaultdict(list)
    for row in rows:
        if _MELD_COLUMNS <= row.keys() and row["label"] in _MELD_LABELS:
            lines[row["dialogue_id"]].append(_said(row))
    turns: dict[tuple[str, int], dict[str, Any]] = {}
    for name, said in lines.items():
        turns |= {(name, row.pop("_number")): row for row in meld_rows(said)}

    def read(row: dict[str, Any]) -> dict[str, Any] | None:
        said = _said(row)
        if said.label not in _MELD_LABELS:
            raise TaskError(f"unknown emotion {said.label!r}")
        # A turn of several lines is read with its first one.
        return turns.get((row["dialogue_id"], said.number))

    return read


_MELD_COLUMNS = frozenset(
    {"dialogue_id", "utterance_id", "speaker", "text", "label", "scene_id"}
)
_MELD_LABELS = FETA_TASKS["friends_meld"].labels


def _said(row: dict[str, Any]) -> Said:
    return Said(
        row["utterance_id"],
        row["speaker"],
        row["text"],
        row["label"],
        row["scene_id"] or "",
    )


def _character_reader(rows: Rows, _: dict) -> Reader:
    # Only turns with mentions have rows; each row also tells the turn before it.
    spoken: dict[str, dict[int, Turn]] = defaultdict(dict)
    for row in rows:
        if "utterance_id" in row and row.get("context"):
            number = _utterance_number(row["utterance_id"])
            speaker, _, said = row["context"].rpartition("\n")[2].partition(": ")
            spoken[row["scene_id"]].setdefault(
                number - 1, (_speakers(speaker), Words.of(said.split()).text)
            )
    for row in rows:
        if "utterance_id" in row:
            spoken[row["scene_id"]][_utterance_number(row["utterance_id"])] = (
                _speakers(row.get("speaker", "")),
                Words.of(row.get("text", "").split()).text,
            )

    def read(row: dict[str, Any]) -> dict[str, Any] | None:
        number = _utterance_number(row["utterance_id"])
        turns = spoken[row["scene_id"]]
        earlier: list[Turn] = []
        for place in sorted(turns):
            # Numbers of silent turns are skipped, so a turn may be known twice.
            if place < number and earlier[-1:] != [turns[place]]:
                earlier.append(turns[place])
        return character_row(
            Words.of(row["text"].split()),
            _speakers(row["speaker"]),
            row["start"],
            row["end"],
            row["entities"],
            earlier,
            row["scene_id"],
        )

    return read


def _reading_reader(_: Rows, dialogues: dict) -> Reader:
    def read(row: dict[str, Any]) -> dict[str, Any]:
        scene = _joined(row, dialogues)
        turns = [
            (speaker_name(turn["speakers"]), turn["tokens"])
            for turn in scene["utterances"]
        ]
        return reading_row(
            row["text"], row["label"], scene["entities"], turns, row["scene_id"]
        )

    return read


def _question_reader(_: Rows, dialogues: dict) -> Reader:
    texts = {name: SpokenText(scene["utterances"]) for name, scene in dialogues.items()}

    def read(row: dict[str, Any]) -> dict[str, Any]:
        _joined(row, dialogues)
        spoken = texts[row["dialogue_id"]]
        return question_row(row["text"], spoken, row["answers"], row["dialogue_id"])

    return read


def _personality_reader(_: Rows, __: dict) -> Reader:
    def read(row: dict[str, Any]) -> dict[str, Any]:
        return personality_row(
            row["text_pair"],
            " ".join(row["text"].split("\n")),
            row["labels"],
            row["scene_id"],
        )

    return read


def _relation_reader(_: Rows, dialogues: dict) -> Reader:
    def read(row: dict[str, Any]) -> dict[str, Any] | None:
        return relation_row(
            row["x"],
            row["y"],
            _joined(row, dialogues)["turns"],
            row["labels"],
            row["dialogue_id"],
        )

    return read


def _joined(row: dict[str, Any], dialogues: dict) -> dict[str, Any]:
    name = row["dialogue_id"]
    if name not in dialogues:
        raise TaskError(f"dialogue {name!r} is not in dialogues.jsonl")
    return dialogues[name]


def _speakers(names: str) -> str:
    # Several speakers are written with commas in rows, with blanks in dialogues.
    return " ".join(names.split(", "))


def _utterance_number(name: str) -> int:
    return int(name.rpartition("_")[2][1:])


READERS: dict[str, Callable[[Rows, dict], Reader]] = {
    "friends_emory_emotion": _emory_reader,
    "friends_meld": _meld_reader,
    "friends_reading": _reading_reader,
    "friends_charid": _character_reader,
    "friends_qa": _question_reader,
    "friends_personality": _personality_reader,
    "friends_relation": _relation_reader,
}
"""Task -> (rows, dialogues by id) -> (row -> normalised row, or None to drop it)."""
