"""Reading comprehension: whole scenes where all three files are there, else windows."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from fusion_jax.data.feta.instances import reading_row, speaker_name
from fusion_jax.data.feta.raw_files import RawFiles, parse_json, unzip
from fusion_jax.data.feta.scene_text import letters
from fusion_jax.data.task import TaskError

WHOLE = "emorynlp/reading-comprehension"
WINDOWS = "Mayer123/Multiparty-Dialog-RC"
_ZIP = "dialog_rc_data/json-25.zip"
_PARTS = ("trn", "dev", "tst")
_ENTITY = re.compile(r"@ent\d+")


def read_reading(raw: RawFiles) -> list[dict[str, Any]]:
    """Rows of all queries.

    The whole-scene files are used when all three are there; else the windows of 25
    utterances, which hold the same queries; else what there is of the whole scenes.
    """
    files = whole = _whole(raw)
    if len(whole) < len(_PARTS):
        for part in _PARTS:
            path = _whole_path(part)
            if f"{WHOLE} {path}" not in whole:
                raw.lost(WHOLE, path, "queries are read with windows of 25 utterances")
        windows = _windows(raw)
        if not windows:
            raw.lost(WINDOWS, _ZIP, "only queries of the whole-scene files there are")
        files = windows or whole
    items = [
        (f"{where}: item {number}", item)
        for where, part in files.items()
        for number, item in enumerate(part)
    ]
    # Candidates are the entities of the scene: of its turns and of all its queries.
    entities: dict[str, set[str]] = defaultdict(set)
    for where, item in items:
        with _explained(where):
            found = entities[item["scene_id"]]
            found.update(_ENTITY.findall(f"{item['query']} {item['answer']}"))
            for turn in item["utterances"]:
                speaker = speaker_name(turn["speakers"])
                found.update(_ENTITY.findall(f"{speaker} {turn['tokens']}"))
    rows = []
    for where, item in items:
        with _explained(where):
            turns = [
                (speaker_name(turn["speakers"]), turn["tokens"])
                for turn in item["utterances"]
            ]
            choices = sorted(entities[item["scene_id"]])
            rows.append(
                reading_row(
                    item["query"], item["answer"], choices, turns, item["scene_id"]
                )
            )
    return rows


def reading_lines(raw: RawFiles) -> dict[str, list[str]]:
    """Scene -> what is said in it, as far as the files of this task tell.

    A window of a short scene runs on into the next ones, so it is cut where another
    scene is known to begin.
    """
    lines: dict[str, list[str]] = {}
    for where, items in _whole(raw).items():
        for item in items:
            with _explained(where):
                lines[item["scene_id"]] = [t["tokens"] for t in item["utterances"]]
    windows: dict[str, list[str]] = {}
    for where, items in _windows(raw).items():
        for item in items:
            with _explained(where):
                windows[item["scene_id"]] = [t["tokens"] for t in item["utterances"]]
    begins = {
        _anonymous(turns[0]) for turns in [*lines.values(), *windows.values()] if turns
    }
    for scene, turns in windows.items():
        if scene not in lines:
            stop = 1
            while stop < len(turns) and _anonymous(turns[stop]) not in begins:
                stop += 1
            lines[scene] = turns[:stop]
    return lines


def _anonymous(line: str) -> str:
    return letters(_ENTITY.sub("", line))


def _whole_path(part: str) -> str:
    return f"json/reading-comprehension-{part}.json"


def _whole(raw: RawFiles) -> dict[str, list[Any]]:
    found = {
        f"{WHOLE} {_whole_path(part)}": raw.json(WHOLE, _whole_path(part))
        for part in _PARTS
    }
    return {where: items for where, items in found.items() if items is not None}


def _windows(raw: RawFiles) -> dict[str, list[Any]]:
    data = raw.read(WINDOWS, _ZIP)
    if data is None:
        return {}
    where = f"{WINDOWS} {_ZIP}"
    members = unzip(data, where)
    names = [f"{part.capitalize()}-25.json" for part in _PARTS]
    absent = [name for name in names if name not in members]
    if absent:
        raise TaskError(f"{where}: no {', '.join(absent)} in it; fetch it again")
    return {
        f"{where}/{name}": parse_json(members[name], f"{where}/{name}")
        for name in names
    }


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise TaskError(f"{where} is not in the expected form ({error!r})") from error
