"""Dialogues that rows point to: their text, and where in it an answer stands."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_jax.data.files import read_rows
from fusion_jax.data.task import TaskError, report


@dataclass(frozen=True)
class Dialogue:
    """A dialogue as one text, 'Speaker: utterance' a line.

    Attributes:
      text: all turns, joined by line breaks.
      turns: utterance id -> (start of the line, start of the utterance, end), as
        character offsets in `text`; an utterance without an id has its position.
      entities: the candidates of a choice task, or ().
    """

    text: str
    turns: Mapping[Any, tuple[int, int, int]]
    entities: tuple[str, ...] = ()


def speaker_line(speakers: Any, text: str) -> str:
    """'Speaker: utterance'; several speakers joined by a blank, none without prefix."""
    names = [speakers] if isinstance(speakers, str) else list(speakers or ())
    name = " ".join(n for n in names if n)
    return f"{name}: {text}" if name else text


def join_turns(raw: Mapping[str, Any]) -> Dialogue:
    """The dialogue of a raw row: 'utterances' or 'turns', each a string or a dict.

    Raises:
      ValueError: neither key is there, or a turn holds no text.
    """
    turns = raw["utterances"] if "utterances" in raw else raw.get("turns")
    if not isinstance(turns, list):
        raise ValueError("a dialogue needs a list 'utterances' or 'turns'")
    lines: list[str] = []
    places: dict[Any, tuple[int, int, int]] = {}
    start = 0
    for position, turn in enumerate(turns):
        turn = {"text": turn} if isinstance(turn, str) else turn
        names = ("text", "utterance", "tokens", "transcript")
        text = next((turn[n] for n in names if n in turn), None)
        if isinstance(text, list):
            text = " ".join(text)
        if not isinstance(text, str):
            raise ValueError(f"turn {position} has no text under {', '.join(names)}")
        line = speaker_line(turn.get("speakers", turn.get("speaker")), text)
        end = start + len(line)
        places[turn.get("uid", position)] = (start, end - len(text), end)
        lines.append(line)
        start = end + 1
    return Dialogue("\n".join(lines), places, tuple(raw.get("entities") or ()))


def read_dialogues(folder: Path) -> dict[str, Dialogue]:
    """The folder's `dialogues` file by dialogue_id; empty if there is none.

    Raises:
      TaskError: lists every bad line.
    """
    dialogues: dict[str, Dialogue] = {}
    problems = []
    for name in ("dialogues.jsonl", "dialogues.jsonl.gz"):
        path = folder / name
        if not path.is_file():
            continue
        for line, raw in read_rows(path):
            try:
                if isinstance(raw, str):
                    raise ValueError(raw)
                if not isinstance(raw.get("dialogue_id"), str):
                    raise ValueError("no 'dialogue_id'")
                dialogues[raw["dialogue_id"]] = join_turns(raw)
            except ValueError as error:
                problems.append(f"{name}:{line}: {error}")
    if problems:
        raise TaskError(report(str(folder), problems))
    return dialogues


def locate(answer: Mapping[str, Any], dialogue: Dialogue) -> tuple[str, int]:
    """An answer's text and its character offset in the dialogue (-1 if not found).

    An answer names the turn it stands in by 'utterance_id'; 'is_speaker' says that it
    is the speaker of that turn, 'inner_start' and 'inner_end' count blank-separated
    words in it. Where these say nothing, the text is looked for in the turn.
    """
    text = answer["answer_text"]
    turn = dialogue.turns.get(answer.get("utterance_id"))
    if turn is None:
        return text, -1
    line, start, end = turn
    first = answer.get("inner_start")
    if isinstance(first, int) and first >= 0 and not answer.get("is_speaker"):
        words = list(re.finditer(r"\S+", dialogue.text[start:end]))
        last = answer.get("inner_end", first)
        if last < len(words):
            begin, stop = start + words[first].start(), start + words[last].end()
            return dialogue.text[begin:stop], begin
    # Speakers come first where the answer is one; older files write their names with
    # underscores.
    plain = text.replace("_", " ")
    places = [(line, start), (start, end)]
    for a, b in places if answer.get("is_speaker") else [*places[1:], places[0]]:
        for wanted in (text, plain):
            found = dialogue.text.find(wanted, a, b)
            if found >= 0:
                return wanted, found
    return plain if plain in dialogue.text else text, -1
