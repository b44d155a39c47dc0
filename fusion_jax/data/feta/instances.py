"""What the encoder reads of each task: one function a form, rows as `Task` wants.

`text` is the turn, question or query; `context` is the earlier dialogue, which the
encoder cuts from the left. Formats after TLiDB's Friends loader (Albalak et al. 2022,
arXiv 2205.06262), with the newest turns kept where that loader cuts them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fusion_jax.data.feta.tasks import (
    CHARACTERS,
    DROPPED_RELATIONS,
    FETA_TASKS,
    RELATIONS,
    TRAITS,
)
from fusion_jax.data.feta.wording import Words
from fusion_jax.data.task import TaskError

Turn = tuple[str, str]
"""(speaker or speakers joined by a blank, utterance)."""

NOT_A_SPEAKER = "#NOTE#"


def speaker_name(speakers: Sequence[str] | str) -> str:
    """One name for a turn: several speakers joined by a blank, '' for a note."""
    if isinstance(speakers, str):
        speakers = [speakers]
    return " ".join(name for name in speakers if name and name != NOT_A_SPEAKER)


def say(speaker: str, utterance: str) -> str:
    """'Speaker: utterance', or the bare utterance where nobody is named."""
    return f"{speaker}: {utterance}" if speaker else utterance


def dialogue(turns: Iterable[Turn]) -> str:
    """Turns in order, joined by one blank."""
    return " ".join(say(*turn) for turn in turns)


def phrase(words: Words, start: int, end: int) -> str:
    """At most four written words beside the mention at tokens [start, end).

    From the mention forward, or the last four up to and including it when that side
    has more words; a tie goes forward.
    """
    begin, stop = words.offsets[start][0], words.offsets[end - 1][1]
    forward = words.text[begin:].split()
    # The mention's own word is taken whole: a mark glued to it belongs to it.
    tail = words.text[stop:]
    glued = "" if tail[:1].isspace() else tail.split(" ", 1)[0]
    backward = (words.text[:stop] + glued).split()
    return " ".join(backward[-4:] if len(backward) > len(forward) else forward[:4])


def emotion_row(
    task: str, turn: Turn, earlier: Sequence[Turn], label: str, scene: str
) -> dict[str, Any]:
    """Emotion of one turn: text = the turn, context = the turns before it."""
    row: dict[str, Any] = {"text": say(*turn)}
    if earlier:
        row["context"] = dialogue(earlier)
    labels = FETA_TASKS[task].labels
    if label not in labels:
        raise TaskError(f"unknown emotion {label!r}; known are {', '.join(labels)}")
    return row | {"target": labels.index(label), "group": scene}


class Said(NamedTuple):
    """A line of MELD: number in its dialogue, speaker, text, emotion, scene or ''."""

    number: int
    speaker: str
    text: str
    label: str
    scene: str


def meld_rows(lines: Sequence[Said]) -> list[dict[str, Any]]:
    """Rows of one dialogue of MELD, whose lines are turns cut at the subtitles.

    Lines that one speaker says in a row are one turn, as in the transcripts that the
    benchmark maps them to; its emotion is the last one that is not neutral.
    '_number' is the number of a turn's first line.
    """
    turns: list[list[Said]] = []
    for line in sorted(lines):
        last = turns[-1][-1] if turns else None
        if last is not None and (last.number + 1, last.speaker, last.scene) == (
            line.number,
            line.speaker,
            line.scene,
        ):
            turns[-1].append(line)
        else:
            turns.append([line])
    rows, earlier = [], []
    for turn in turns:
        said = (turn[0].speaker, " ".join(line.text for line in turn))
        strong = [line.label for line in turn if line.label != "neutral"]
        label = strong[-1] if strong else "neutral"
        row = emotion_row("friends_meld", said, earlier, label, turn[0].scene)
        rows.append(row | {"_number": turn[0].number})
        earlier.append(said)
    return rows


def character_row(
    words: Words,
    speaker: str,
    start: int,
    end: int,
    entities: Sequence[str],
    earlier: Sequence[Turn],
    scene: str,
) -> dict[str, Any]:
    """Whom the mention at tokens [start, end) of an utterance refers to.

    A mention of several people has the class of the first one named, as in the
    benchmark. The turn itself closes the context.
    """
    mention = words.text[words.offsets[start][0] : words.offsets[end - 1][1]]
    label = CHARACTERS.get(entities[0], "other")
    return {
        "text": f"Who does '{mention}' refer to in the phrase "
        f"'{phrase(words, start, end)}'?",
        "context": dialogue([*earlier, (speaker, words.text)]),
        "target": FETA_TASKS["friends_charid"].labels.index(label),
        "group": scene,
    }


def reading_row(
    query: str, answer: str, choices: Sequence[str], turns: Sequence[Turn], scene: str
) -> dict[str, Any]:
    """Which entity of the scene stands at the gap of the query."""
    return {
        "text": query,
        "context": dialogue(turns),
        "choices": tuple(choices),
        "target": list(choices).index(answer),
        "group": scene,
    }


def personality_row(
    speaker: str, context: str, traits: Sequence[str], scene: str
) -> dict[str, Any]:
    """Which of the five traits the speaker shows in the dialogue."""
    return {
        "text": speaker,
        "context": context,
        "target": tuple(sorted(TRAITS.index(trait) for trait in traits)),
        "group": scene,
    }


def relation_row(
    head: str, tail: str, turns: Sequence[str], relations: Sequence[str], group: str
) -> dict[str, Any] | None:
    """Relations of an ordered pair, or None when only dropped relations hold."""
    kept = {relation for relation in relations if relation not in DROPPED_RELATIONS}
    if not kept:
        return None
    return {
        "text": head,
        "text_pair": tail,
        "context": " ".join(turns),
        "target": tuple(sorted(RELATIONS.index(relation) for relation in kept)),
        "group": group,
    }


class SpokenText:
    """A dialogue of FriendsQA as one string in which its answers can be found.

    Attributes:
      text: the turns, joined by one blank.
    """

    def __init__(self, utterances: Sequence[Mapping[str, Any]]):
        """Takes records {'uid', 'speakers', 'utterance': tokens joined by blanks}."""
        self._turns: dict[int, tuple[int, str, Words]] = {}
        turns: list[Turn] = []
        length = 0
        for turn in utterances:
            speaker = speaker_name(turn["speakers"])
            words = Words.of(turn["utterance"].split())
            self._turns[turn["uid"]] = (length, speaker, words)
            turns.append((speaker, words.text))
            length += len(say(speaker, words.text)) + 1
        self.text = dialogue(turns)

    def locate(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """{'text', 'start'} of an annotated answer; start is -1 if it is not there.

        Args:
          answer: 'answer_text' (tokens joined by blanks), 'utterance_id', and in the
            second version 'inner_start', 'inner_end' (tokens, both included) and
            'is_speaker'; without them the text is looked for in the turn.
        """
        tokens = answer["answer_text"].split()
        lost = {"text": Words.of(tokens).text, "start": -1}
        if answer["utterance_id"] not in self._turns:
            return lost
        start, speaker, words = self._turns[answer["utterance_id"]]
        # The first version writes speakers as one token: 'Monica_Geller'.
        name = answer["answer_text"].replace("_", " ")
        if answer.get("is_speaker", name == speaker):
            at = speaker.find(name)
            return {"text": name, "start": start + at if at >= 0 else -1}
        span = (answer.get("inner_start", 0), answer.get("inner_end", -1))
        if words.tokens[span[0] : span[1] + 1] != tuple(tokens):
            # No span, or one that is off: the annotated text decides.
            span = words.find(tokens)
        if span is None:
            return lost
        begin, end = words.offsets[span[0]][0], words.offsets[span[1]][1]
        prefix = len(speaker) + 2 if speaker else 0
        return {"text": words.text[begin:end], "start": start + prefix + begin}


def question_row(
    question: str,
    spoken: SpokenText,
    answers: Iterable[Mapping[str, Any]],
    scene: str,
) -> dict[str, Any]:
    """A question whose answers are spans of the dialogue; repeats are left out."""
    located = [spoken.locate(answer) for answer in answers]
    unique = {(answer["text"], answer["start"]): answer for answer in located}
    return {
        "text": Words.of(question.split()).text,
        "context": spoken.text,
        "target": tuple(unique.values()),
        "group": scene,
    }
