"""Scenes in the JSON layout of the Emory files: season, episodes, scenes, turns."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from fusion_jax.data.feta.instances import speaker_name
from fusion_jax.data.feta.raw_files import RawFiles
from fusion_jax.data.feta.wording import Words
from fusion_jax.data.task import TaskError

MINING = "emorynlp/character-mining"


class Utterance(NamedTuple):
    """One turn of a scene.

    Attributes:
      number: its number in the scene.
      speaker: one or more names, '' for a note.
      text: as transcribed, without notes.
      words: its tokens, all sentences together.
      record: the raw record, with its annotations.
    """

    number: int
    speaker: str
    text: str
    words: Words
    record: dict[str, Any]


class Scene(NamedTuple):
    """A scene and its turns in order."""

    name: str
    utterances: tuple[Utterance, ...]


def read_scenes(value: Any, where: str) -> list[Scene]:
    """Scenes of one file.

    Raises:
      TaskError: names the file, the scene and the key that is missing.
    """
    place = where
    try:
        scenes = []
        for episode in value["episodes"]:
            for scene in episode["scenes"]:
                place = f"{where}, scene {scene['scene_id']}"
                scenes.append(
                    Scene(
                        scene["scene_id"],
                        tuple(_utterance(record) for record in scene["utterances"]),
                    )
                )
        return scenes
    except KeyError as error:
        raise TaskError(
            f"{place}: no key {error.args[0]!r}; the file's form has changed"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise TaskError(f"{place}: not in the expected form ({error})") from error


def scenes_of(raw: RawFiles, repository: str, path: str) -> list[Scene] | None:
    """Scenes of one raw file, or None where it is not there."""
    value = raw.json(repository, path)
    return None if value is None else read_scenes(value, f"{repository} {path}")


def read_seasons(raw: RawFiles) -> dict[int, list[Scene]]:
    """Season -> its scenes, for each season file that is there."""
    seasons: dict[int, list[Scene]] = {}
    absent = []
    for season in range(1, 11):
        path = f"json/friends_season_{season:02d}.json"
        scenes = scenes_of(raw, MINING, path)
        if scenes is None:
            absent.append(f"{season:02d}")
        else:
            seasons[season] = scenes
    if absent:
        raw.lost(
            MINING,
            f"json/friends_season_{{{','.join(absent)}}}.json",
            "the scene order is rebuilt from the known lengths of episodes, and only "
            "scenes whose place is certain are used",
        )
    return seasons


def spoken(scene: Scene) -> Iterator[Utterance]:
    """Turns in which something is said."""
    return (turn for turn in scene.utterances if turn.text)


def _utterance(record: dict[str, Any]) -> Utterance:
    sentences = record["tokens"] or []
    return Utterance(
        number=int(record["utterance_id"].rpartition("_u")[2]),
        speaker=speaker_name(record["speakers"]),
        text=record["transcript"] or "",
        words=Words.of([token for sentence in sentences for token in sentence]),
        record=record,
    )
