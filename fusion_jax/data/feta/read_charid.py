"""Character identification: mentions in the scenes of the official files."""

from typing import Any

from fusion_jax.data.feta.instances import Turn, character_row
from fusion_jax.data.feta.raw_files import RawFiles
from fusion_jax.data.feta.transcripts import Scene, Utterance, scenes_of
from fusion_jax.data.task import TaskError

REPOSITORY = "emorynlp/character-identification"


def read_charid(raw: RawFiles, seasons: dict[int, list[Scene]]) -> list[dict[str, Any]]:
    """Rows of all mentions; official files first, then annotated transcripts."""
    scenes: dict[str, Scene] = {}
    for part in ("trn", "dev", "tst"):
        path = f"json/character-identification-{part}.json"
        official = scenes_of(raw, REPOSITORY, path)
        if official is None:
            raw.lost(
                REPOSITORY,
                path,
                "of its mentions only those in annotated transcripts are used",
            )
        for scene in official or ():
            scenes.setdefault(scene.name, scene)
    for transcript in seasons.values():
        for scene in transcript:
            if any(turn.record.get("character_entities") for turn in scene.utterances):
                scenes.setdefault(scene.name, scene)
    return [row for scene in scenes.values() for row in _rows(scene)]


def _rows(scene: Scene) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    earlier: list[Turn] = []
    for turn in scene.utterances:
        if not turn.words.tokens:
            continue
        for start, end, names in _mentions(turn, scene.name):
            rows.append(
                character_row(
                    turn.words, turn.speaker, start, end, names, earlier, scene.name
                )
            )
        earlier.append((turn.speaker, turn.words.text))
    return rows


def _mentions(turn: Utterance, scene: str) -> list[tuple[int, int, list[str]]]:
    mentions, offset = [], 0
    annotated = turn.record.get("character_entities") or []
    for sentence, entities in zip(turn.record["tokens"], annotated, strict=False):
        for start, end, *names in entities:
            if not names or not 0 <= start < end <= len(sentence):
                raise TaskError(
                    f"{REPOSITORY}: scene {scene}, turn {turn.number}: mention "
                    f"[{start}, {end}) of {names} does not fit its sentence"
                )
            mentions.append((offset + start, offset + end, names))
        offset += len(sentence)
    return mentions
