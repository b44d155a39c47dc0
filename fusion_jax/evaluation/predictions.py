"""From readouts to what a task is asked for: classes, label sets, tags, strings."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fusion_jax.data.encoded import Encoded
from fusion_jax.evaluation.readout import Readout


def predict(readout: Readout, encoded: Encoded) -> np.ndarray:
    """The answer to every item of a split.

    Args:
      readout: arrays [N, ...] by row, or of a population [P, N, ...].
      encoded: the split, with the decision rule and what turns tokens into text.

    Returns:
      By kind, with the population's axis in front where the readout has one:
      single_label, choice, text_to_text [items] int class ids; multi_label
      [items, C] bool; token [words] int tag ids of all words, item after item
      (`split_words` cuts them); span [items] strings.

    Raises:
      ValueError: the kind or the decision rule is unknown.
    """
    try:
        predictor = PREDICTORS[encoded.kind]
    except KeyError:
        raise ValueError(
            f"{encoded.task_name}: no predictions for kind {encoded.kind!r}; there "
            f"are {', '.join(PREDICTORS)}"
        ) from None
    return predictor(readout, encoded)


def predict_class(readout: Readout, encoded: Encoded) -> np.ndarray:
    """The class, or candidate, with the largest logit: [..., items] int."""
    return _by_item(np.argmax(readout["logits"], axis=-1), encoded)


def predict_labels(readout: Readout, encoded: Encoded) -> np.ndarray:
    """The set of labels by the task's decision rule: [..., items, C] bool.

    '' and 'sigmoid:t' take labels with sigmoid(z) > t (t = 0.5 without a number);
    'softmax:t' those with softmax(z) > t, and the largest where none passes.
    """
    logits = np.asarray(readout["logits"])[..., : encoded.num_labels]
    rule, threshold = parse_decision(encoded.decision)
    if rule == "softmax":
        chosen = softmax(logits) > threshold
        largest = np.argmax(logits, -1)[..., None] == np.arange(logits.shape[-1])
        chosen |= largest & ~chosen.any(-1, keepdims=True)
    else:
        chosen = logits > np.log(threshold / (1 - threshold))
    return _by_item(chosen, encoded, axis=-2)


def predict_tags(readout: Readout, encoded: Encoded) -> np.ndarray:
    """The tag of each word's first token: [..., words] int; 'O' for words cut off."""
    tags = np.asarray(readout["tags"])
    first = np.concatenate([[0], np.cumsum(word_counts(encoded))])
    outside = encoded.labels.index("O") if "O" in encoded.labels else 0
    words = np.full((*tags.shape[:-2], int(first[-1])), outside, np.int64)
    rows, columns, places = [], [], []
    for row, (item, word) in enumerate(
        zip(encoded.items, encoded.token_words, strict=True)
    ):
        column = np.flatnonzero(np.asarray(word) >= 0)
        rows.append(np.full(len(column), row))
        columns.append(column)
        places.append(first[item] + np.asarray(word)[column])
    if rows:
        words[..., np.concatenate(places)] = tags[
            ..., np.concatenate(rows), np.concatenate(columns)
        ]
    return words


def predict_text(readout: Readout, encoded: Encoded) -> np.ndarray:
    """The best span over an item's windows, by confidence: [..., items] strings."""
    confidence = np.asarray(readout["confidence"])
    spans = np.asarray(readout["span"])
    lead = confidence.shape[:-1]
    confidence = confidence.reshape(-1, confidence.shape[-1])
    spans = spans.reshape(-1, *spans.shape[-2:])
    count = len(encoded.references)
    texts = np.full((len(confidence), count), "", object)
    # Of the rows of one item in order of confidence, the last is the best; the sort
    # is stable on reversed rows so that the first window wins a tie.
    reverse = np.arange(confidence.shape[1])[::-1]
    items = np.asarray(encoded.items)
    best = np.zeros((len(confidence), count), np.int64)
    for candidate, values in enumerate(confidence):
        order = reverse[np.argsort(values[reverse], kind="stable")]
        best[candidate, items[order]] = order
    for item in range(count):
        known: dict[tuple[int, int, int], str] = {}
        for candidate in range(len(confidence)):
            row = int(best[candidate, item])
            start, end = (int(t) for t in spans[candidate, row])
            if (row, start, end) not in known:
                offsets = encoded.offsets[row]
                known[row, start, end] = encoded.texts[item][
                    int(offsets[start][0]) : int(offsets[end][1])
                ]
            texts[candidate, item] = known[row, start, end]
    return texts.reshape(*lead, count)


PREDICTORS: dict[str, Callable[[Readout, Any], np.ndarray]] = {
    "single_label": predict_class,
    "multi_label": predict_labels,
    "choice": predict_class,
    "span": predict_text,
    "token": predict_tags,
    "text_to_text": predict_class,
}


def parse_decision(decision: str) -> tuple[str, float]:
    """('sigmoid' | 'softmax', threshold) of a task's decision rule."""
    rule, _, number = (decision or "sigmoid").partition(":")
    try:
        threshold = float(number) if number else 0.5
    except ValueError:
        threshold = -1.0
    if rule not in ("sigmoid", "softmax") or not 0.0 < threshold < 1.0:
        raise ValueError(
            f"decision rule {decision!r} is unknown; write 'sigmoid:0.5' or "
            "'softmax:0.1', a threshold between 0 and 1"
        )
    return rule, threshold


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def word_counts(encoded: Encoded) -> np.ndarray:
    """Number of words of each item: [items] int."""
    return np.array([len(r["tags"]) for r in encoded.references], np.int64)


def split_words(tags: np.ndarray, encoded: Encoded) -> list[np.ndarray]:
    """Cuts the [words] of `predict` into one array an item."""
    return np.split(tags, np.cumsum(word_counts(encoded))[:-1])


def _by_item(values: np.ndarray, encoded: Encoded, axis: int = -1) -> np.ndarray:
    """Rows into the order of the items; these kinds have one row an item."""
    items = np.asarray(encoded.items)
    if np.array_equal(items, np.arange(len(encoded.references))):
        return values
    if not np.array_equal(np.sort(items), np.arange(len(encoded.references))):
        raise ValueError(
            f"{encoded.task_name}: a {encoded.kind} task has exactly one row an item, "
            f"but {len(items)} rows stand for {len(encoded.references)} items"
        )
    return np.take(values, np.argsort(items), axis=axis)
