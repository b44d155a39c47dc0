"""MELD: emotion of turns in three CSV files that do not name the scenes."""

from collections import defaultdict
from typing import Any

from fusion_jax.data.feta.instances import Said, meld_rows
from fusion_jax.data.feta.raw_files import RawFiles
from fusion_jax.data.feta.scene_text import SceneIndex
from fusion_jax.data.task import TaskError

REPOSITORY = "declare-lab/MELD"
_COLUMNS = (
    "Utterance",
    "Speaker",
    "Emotion",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
)


def read_meld(raw: RawFiles, index: SceneIndex) -> list[dict[str, Any]]:
    """Rows of all turns; the scene is found by the words, '' where it is not."""
    dialogues: dict[str, list[Said]] = defaultdict(list)
    episodes: dict[str, str] = {}
    for split in ("train", "dev", "test"):
        path = f"data/MELD/{split}_sent_emo.csv"
        rows = raw.csv(REPOSITORY, path, _COLUMNS)
        if rows is None:
            raw.lost(REPOSITORY, path, f"no MELD turns of its {split} file")
            continue
        for number, row in enumerate(rows, start=2):
            try:
                name = f"{split}_{int(row['Dialogue_ID'])}"
                episodes[name] = f"s{int(row['Season']):02d}_e{int(row['Episode']):02d}"
                said = Said(
                    int(row["Utterance_ID"]),
                    row["Speaker"],
                    # Some rows hold Windows marks as control characters.
                    _written(row["Utterance"]),
                    row["Emotion"].lower(),
                    "",
                )
            except ValueError as error:
                raise TaskError(
                    f"{REPOSITORY} {path}: row {number}: {error}"
                ) from error
            dialogues[name].append(said)
    result = []
    for name, turns in dialogues.items():
        turns.sort(key=lambda turn: turn.number)
        scenes = index.place([turn.text for turn in turns], episodes[name])
        placed = [
            turn._replace(scene=scene)
            for turn, scene in zip(turns, scenes, strict=True)
        ]
        result += meld_rows(placed)
    return result


def _written(text: str) -> str:
    return "".join(
        bytes([ord(c)]).decode("cp1252", "replace") if 0x80 <= ord(c) < 0xA0 else c
        for c in text
    )
