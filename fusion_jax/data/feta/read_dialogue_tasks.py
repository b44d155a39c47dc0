"""Tasks asked of a whole dialogue: questions, personality, relations."""

import html
import re
from typing import Any

from fusion_jax.data.feta.instances import (
    SpokenText,
    personality_row,
    question_row,
    relation_row,
    say,
)
from fusion_jax.data.feta.raw_files import RawFiles
from fusion_jax.data.feta.scene_text import SceneIndex
from fusion_jax.data.feta.tasks import TRAITS
from fusion_jax.data.task import TaskError

QUESTIONS = "emorynlp/FriendsQA"
PERSONALITY = "emorynlp/personality-detection"
RELATIONS = "nlpdata/dialogre"
_SPEAKER = re.compile(r"<b>(.*?)</b>:?\s*(.*)", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")


def question_dialogues(raw: RawFiles, *, note_missing: bool = True) -> list[Any]:
    """Records {title, utterances, qas} of the FriendsQA files that are there."""
    records = []
    for part in ("trn", "dev", "tst"):
        path = f"dat/friendsqa_{part}.json"
        value = raw.json(QUESTIONS, path)
        if value is None:
            if note_missing:
                raw.lost(QUESTIONS, path, "its questions are not used")
            continue
        where = f"{QUESTIONS} {path}"
        try:
            for scene in value["data"]:
                where = f"{QUESTIONS} {path}, {scene['title']}"
                for paragraph in scene["paragraphs"]:
                    # The key really ends in a colon in the published files.
                    key = "utterances:" if "utterances:" in paragraph else "utterances"
                    records.append(
                        {
                            "title": scene["title"],
                            "utterances": paragraph[key],
                            "qas": paragraph["qas"],
                        }
                    )
        except (KeyError, TypeError) as error:
            raise TaskError(f"{where}: the file's form has changed ({error!r})") from (
                error
            )
    return records


def read_questions(raw: RawFiles) -> list[dict[str, Any]]:
    """Rows of all questions over whole scenes."""
    rows = []
    for record in question_dialogues(raw):
        try:
            scene = SpokenText(record["utterances"])
            rows += [
                question_row(qa["question"], scene, qa["answers"], record["title"])
                for qa in record["qas"]
            ]
        except (KeyError, TypeError) as error:
            raise TaskError(
                f"{QUESTIONS}, scene {record['title']}: the file's form has changed "
                f"({error!r})"
            ) from error
    return rows


def read_personality(raw: RawFiles) -> list[dict[str, Any]]:
    """Rows of all (dialogue, speaker) pairs."""
    path = "CSV/friends-personality.csv"
    columns = ("scene_id", "text", "character", *(f"c{trait}" for trait in TRAITS))
    rows = raw.csv(PERSONALITY, path, columns)
    if rows is None:
        raw.lost(PERSONALITY, path, "no personality task")
    return [
        personality_row(
            row["character"],
            " ".join(personality_lines(row["text"])),
            [trait for trait in TRAITS if row[f"c{trait}"].strip() == "1"],
            f"s{row['scene_id'].removeprefix('s')}",
        )
        for row in rows or ()
    ]


def personality_lines(text: str) -> list[str]:
    """'Speaker: utterance' lines of a text in simple HTML; the heading is left out."""
    lines = []
    for piece in re.split(r"<br>\s*<br>", text)[1:]:
        match = _SPEAKER.fullmatch(piece.strip())
        line = say(*match.groups()) if match else piece
        line = " ".join(html.unescape(_TAG.sub(" ", line)).split())
        if line:
            lines.append(line)
    return lines


def read_relations(raw: RawFiles, index: SceneIndex | None) -> list[dict[str, Any]]:
    """Rows of all entity pairs; '_split' is the file that a row came from.

    Args:
      raw: the raw files.
      index: lines of all scenes, to find a dialogue's scene by its words; None keeps
        the dialogue as the group.
    """
    rows = []
    for split in ("train", "dev", "test"):
        path = f"data_v2/en/data/{split}.json"
        dialogues = raw.json(RELATIONS, path)
        if dialogues is None:
            raw.lost(RELATIONS, path, "its relations are not used")
            continue
        for number, entry in enumerate(dialogues):
            group = f"{split}_{number}"
            try:
                turns, pairs = entry
                if index is not None:
                    group = _scene_of(turns, index)
                for pair in pairs:
                    row = relation_row(pair["x"], pair["y"], turns, pair["r"], group)
                    if row is not None:
                        rows.append(row | {"_split": split})
            except (KeyError, TypeError, ValueError) as error:
                raise TaskError(
                    f"{RELATIONS} {path}: dialogue {number} is not in the expected "
                    f"form ({error!r})"
                ) from error
    return rows


def _scene_of(turns: list[str], index: SceneIndex) -> str:
    placed = index.place([turn.partition(": ")[2] for turn in turns])
    # A dialogue that runs over two scenes has no place in a split by scene.
    scenes = set(placed)
    return placed[0] if len(scenes) == 1 else ""
