"""One raw row (any column names, labels as words) into the row form of a Task."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion_jax.data.dialogues import Dialogue, locate, speaker_line
from fusion_jax.data.task import Row

# The first column of these that a row has is read, unless the task names its own.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "x"),
    "text_pair": ("text_pair", "y"),
    "context": ("context",),
    "label": ("label",),
    "labels": ("labels",),
    "tokens": ("tokens",),
    "tags": ("tags",),
    "answers": ("answers",),
    "choices": ("choices",),
    "target": ("target",),
    "speaker": ("speaker",),
    "group": ("group", "scene_id", "dialogue_id"),
}


@dataclass(frozen=True)
class RowForm:
    """How the raw rows of one task are read.

    Attributes:
      kind: kind of the task.
      ids: class name -> class id.
      columns: field of a Task row -> column of the raw row, over `COLUMNS`.
      label_map: raw label -> class name; None drops the row.
    """

    kind: str
    ids: Mapping[str, int]
    columns: Mapping[str, str] = field(default_factory=dict)
    label_map: Mapping[str, str | None] = field(default_factory=dict)

    def get(self, raw: Mapping[str, Any], name: str) -> Any:
        """The value of a field in a raw row, or None."""
        if name in self.columns:
            return raw.get(self.columns[name])
        values = (raw.get(column) for column in COLUMNS[name])
        return next((v for v in values if v is not None), None)


def infer_kind(
    raw: Mapping[str, Any], form: RowForm, dialogue: Dialogue | None = None
) -> str:
    """The kind that a row's columns speak of.

    tags -> token, answers -> span, a label among 'choices' (or among the joined
    dialogue's entities) -> choice, labels without label -> multi_label, label ->
    single_label, target alone -> text_to_text.

    Raises:
      ValueError: none of these columns is there.
    """
    has = {name: form.get(raw, name) is not None for name in COLUMNS}
    if has["tags"]:
        return "token"
    if has["answers"]:
        return "span"
    if has["label"] and (has["choices"] or (dialogue and dialogue.entities)):
        return "choice"
    if has["labels"] and not has["label"]:
        return "multi_label"
    if has["label"]:
        return "single_label"
    if has["target"]:
        return "text_to_text"
    raise ValueError(
        f"no kind fits the columns {', '.join(map(str, raw))}: one of label, labels, "
        "tags, answers, target is needed; name your column in task.json"
    )


def normalise(
    raw: Mapping[str, Any], form: RowForm, dialogue: Dialogue | None = None
) -> Row | None:
    """The Task row of a raw row; None if the label map drops it.

    A 'speaker' is put before the text ('Speaker: utterance'). A 'mention' with its
    word offsets 'start' and 'end' is set between asterisks in the text. The dialogue
    becomes the context where the row has none of its own.

    Raises:
      ValueError: says what is missing or not understood.
    """
    if form.kind == "token":
        row = _token_row(raw, form)
    else:
        text = _text(form.get(raw, "text"), "text")
        speaker = form.get(raw, "speaker")
        row: Row = {"text": speaker_line(speaker, _mark_mention(raw, text))}
        pair = form.get(raw, "text_pair")
        if pair is not None:
            row["text_pair"] = _text(pair, "text_pair")
        context = form.get(raw, "context")
        if isinstance(context, list):
            context = "\n".join(context)
        if context is None and dialogue is not None:
            context = dialogue.text
        if context:
            row["context"] = _text(context, "context")
        target = TARGETS[form.kind](raw, form, row, dialogue)
        if target is None:
            return None
        row["target"] = target
    group = form.get(raw, "group")
    if group is not None:
        row["group"] = str(group)
    return row


def class_id(label: Any, form: RowForm) -> int | None:
    """Class id of a raw label (a name, or a number); None if the map drops it.

    Raises:
      ValueError: the label is not one of the task's.
    """
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise ValueError(f"label {label!r} is neither a name nor a number")
    name = form.label_map.get(str(label), str(label))
    if name is None:
        return None
    if name in form.ids:
        return form.ids[name]
    if name.isdigit() and int(name) < len(form.ids):
        return int(name)
    known = list(form.ids)
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    raise ValueError(
        f"unknown label {name!r}; labels.json has {listed or 'none'} (correct the "
        "row, extend labels.json, or map it with label_map)"
    )


def as_list(value: Any) -> list[Any]:
    """A list column; a CSV cell holds JSON, or words separated by '|' or blanks."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no list")
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [w.strip() for w in value.split("|")] if "|" in value else value.split()


def _text(value: Any, name: str) -> str:
    if value is None:
        raise ValueError(f"no {name!r}; name its column in task.json if it has another")
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {type(value).__name__}, not a string")
    return value


def _mark_mention(raw: Mapping[str, Any], text: str) -> str:
    start, end = raw.get("start"), raw.get("end")
    if "mention" not in raw or not isinstance(start, int) or not isinstance(end, int):
        return text
    words = text.split(" ")
    marked = [*words[:start], "*", *words[start:end], "*", *words[end:]]
    return " ".join(marked)


def _token_row(raw: Mapping[str, Any], form: RowForm) -> Row:
    tokens, tags = form.get(raw, "tokens"), form.get(raw, "tags")
    if tokens is None or tags is None:
        raise ValueError("a token row needs both 'tokens' and 'tags'")
    tokens, tags = as_list(tokens), as_list(tags)
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens but {len(tags)} tags")
    if not tokens:
        raise ValueError("no tokens")
    ids = [class_id(tag, form) for tag in tags]
    if None in ids:
        raise ValueError("label_map may rename a tag, but not drop it")
    return {"text": " ".join(tokens), "tokens": tuple(tokens), "target": tuple(ids)}


def _single(raw: Mapping[str, Any], form: RowForm, *_: Any) -> int | None:
    return class_id(form.get(raw, "label"), form)


def _multi(raw: Mapping[str, Any], form: RowForm, *_: Any) -> tuple[int, ...]:
    ids = {class_id(name, form) for name in as_list(form.get(raw, "labels"))}
    return tuple(sorted(i for i in ids if i is not None))


def _choice(
    raw: Mapping[str, Any], form: RowForm, row: Row, dialogue: Dialogue | None
) -> int:
    choices = form.get(raw, "choices")
    names = (
        as_list(choices)
        if choices is not None
        else list(dialogue.entities if dialogue else ())
    )
    if not names or len(set(names)) < len(names):
        raise ValueError("a choice row needs choices, all different")
    row["choices"] = tuple(names)
    label = form.get(raw, "label")
    if label in names:
        return names.index(label)
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise ValueError(f"label {label!r} is not one of its choices {', '.join(names)}")


def _span(
    raw: Mapping[str, Any], form: RowForm, row: Row, dialogue: Dialogue | None
) -> tuple[dict[str, Any], ...]:
    if "context" not in row:
        raise ValueError("a span row needs a context, or a dialogue_id to join")
    answers = form.get(raw, "answers")
    if isinstance(answers, str):
        answers = [answers]
    if isinstance(answers, Mapping):  # columns of lists, as in SQuAD
        starts = answers.get("answer_start", [-1] * len(answers["text"]))
        pairs = zip(answers["text"], starts, strict=True)
        answers = [{"text": t, "start": s} for t, s in pairs]
    found = [_answer(a, row["context"], dialogue) for a in answers]
    return tuple({"text": text, "start": start} for text, start in found)


def _answer(answer: Any, context: str, dialogue: Dialogue | None) -> tuple[str, int]:
    if isinstance(answer, str):
        text, start = answer, -1
    elif "answer_text" in answer:
        text, start = answer["answer_text"], -1
        if dialogue is not None:
            text, start = locate(answer, dialogue)
    else:
        text, start = answer.get("text"), answer.get("start", -1)
    if not isinstance(text, str) or not isinstance(start, int):
        raise ValueError(f"answer {answer!r} needs 'text' and a number 'start'")
    if start >= 0 and context[start : start + len(text)] != text:
        raise ValueError(
            f"answer {text!r} does not stand at offset {start} of its context"
        )
    return text, start if start >= 0 else context.find(text)


def _text_target(raw: Mapping[str, Any], form: RowForm, *_: Any) -> str:
    return _text(form.get(raw, "target"), "target")


TARGETS: Mapping[str, Any] = {
    "single_label": _single,
    "multi_label": _multi,
    "choice": _choice,
    "span": _span,
    "text_to_text": _text_target,
}
