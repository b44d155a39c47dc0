"""Counting right and wrong answers, item by item or candidate by candidate.

Every function here is `(predictions [P, ...], encoded, by_item)` -> float64 [P, S], or
[P, items, S] when `by_item`; its first docstring line names the S statistics.
"""

from typing import NamedTuple

import numpy as np

from fusion_jax.data.encoded import Encoded
from fusion_jax.evaluation import entities, strings
from fusion_jax.evaluation.predictions import word_counts


class Units(NamedTuple):
    """What is compared with the gold answers: items, or the words of token tasks.

    Attributes:
      gold: [U] class ids, or [U, C] bool.
      predicted: the same with the population in front, [P, U] or [P, U, C].
      item: [U] the item each unit belongs to.
      items: number of items.
    """

    gold: np.ndarray
    predicted: np.ndarray
    item: np.ndarray
    items: int


def units(predictions: np.ndarray, encoded: Encoded) -> Units:
    """Predictions beside the gold answers."""
    count = len(encoded.references)
    item = np.arange(count)
    if encoded.kind == "multi_label":
        gold = np.zeros((count, encoded.num_labels), bool)
        for row, labels in zip(gold, encoded.references, strict=True):
            row[list(labels)] = True
    elif encoded.kind == "token":
        item = np.repeat(item, word_counts(encoded))
        tags = [np.asarray(r["tags"], np.int64) for r in encoded.references]
        gold = np.concatenate(tags) if tags else np.zeros(0, np.int64)
    else:
        gold = np.asarray(encoded.references, np.int64)
    return Units(gold, predictions, item, count)


def correct(predictions: np.ndarray, encoded: Encoded, by_item: bool) -> np.ndarray:
    """[right, all]: units whose answer is right; unscored gold classes are left out."""
    u = units(predictions, encoded)
    if encoded.kind == "multi_label":
        scored = scored_labels(encoded)
        right = (u.predicted[..., scored] == u.gold[:, scored]).all(-1)
        counted = np.ones(right.shape, bool)
    else:
        counted = np.isin(u.gold, list(encoded.unscored), invert=True) & (u.gold >= 0)
        counted = np.broadcast_to(counted, u.predicted.shape)
        right = (u.predicted == u.gold) & counted
    return _add(np.stack([right, counted], -1), u, by_item)


def correct_labels(
    predictions: np.ndarray, encoded: Encoded, by_item: bool
) -> np.ndarray:
    """[right, all]: each scored label of each item is one yes-or-no question."""
    u = units(predictions, encoded)
    scored = scored_labels(encoded)
    right = (u.predicted[..., scored] == u.gold[:, scored]).sum(-1)
    return _add(np.stack([right, np.full_like(right, len(scored))], -1), u, by_item)


def exact(predictions: np.ndarray, encoded: Encoded, by_item: bool) -> np.ndarray:
    """[right, all] of whole items: strings, sequences, sets, classes."""
    if encoded.kind == "span":
        found = _compare_strings(predictions, encoded)[..., :1]
        return _whole(np.concatenate([found, np.ones_like(found)], -1), by_item)
    if encoded.kind != "token":
        return correct(predictions, encoded, by_item)
    right, counted = np.moveaxis(correct(predictions, encoded, True), -1, 0)
    whole = np.stack([right == counted, np.ones_like(right)], -1)
    return _whole(whole.astype(np.float64), by_item)


def classes(predictions: np.ndarray, encoded: Encoded, by_item: bool) -> np.ndarray:
    """[tp, fp, fn, counted], each [C] over the scored classes.

    `counted` is positive for a class that enters a macro average: all columns of a
    multi-label task, the classes that occur (in gold or prediction) of the others,
    as scikit-learn has it.
    """
    u = units(predictions, encoded)
    scored = scored_labels(encoded)
    if encoded.kind == "multi_label":
        gold = np.broadcast_to(u.gold[:, scored], u.predicted[..., scored].shape)
        predicted = u.predicted[..., scored]
        columns = [gold & predicted, predicted & ~gold, gold & ~predicted]
        return _add(np.concatenate([*columns, np.ones_like(gold)], -1), u, by_item)
    population, count = u.predicted.shape
    size = encoded.num_labels + 1  # one more for what is no class: -1
    groups = population * (u.items if by_item else 1)
    group = np.arange(population)[:, None] * (u.items if by_item else 1)
    group = np.broadcast_to(group + (u.item if by_item else 0), (population, count))
    gold = np.where((u.gold < 0) | (u.gold >= size), size - 1, u.gold)
    guess = u.predicted
    guess = np.where((guess < 0) | (guess >= size), size - 1, guess)
    golds, guesses = group * size + gold, group * size + guess

    def histogram(codes: np.ndarray) -> np.ndarray:
        table = np.bincount(codes.ravel(), minlength=groups * size)
        return table.reshape(groups, size)[:, scored]

    tp = histogram(golds[golds == guesses])
    fp, fn = histogram(guesses) - tp, histogram(golds) - tp
    found = np.concatenate([tp, fp, fn, tp + fp + fn], -1).astype(np.float64)
    return found.reshape(population, *([u.items] if by_item else []), -1)


def words_f1(predictions: np.ndarray, encoded: Encoded, by_item: bool) -> np.ndarray:
    """[f1, items] of the strings' words."""
    found = _compare_strings(predictions, encoded)[..., 1:2]
    return _whole(np.concatenate([found, np.ones_like(found)], -1), by_item)


def words(predictions: np.ndarray, encoded: Encoded, by_item: bool) -> np.ndarray:
    """[common, predicted, gold] words, of each item's best gold string."""
    return _whole(_compare_strings(predictions, encoded)[..., 2:], by_item)


def entity_counts(
    predictions: np.ndarray, encoded: Encoded, by_item: bool
) -> np.ndarray:
    """[right, predicted, gold] entities."""
    u = units(predictions, encoded)
    scheme = entities.read_scheme(encoded.labels)
    first = np.diff(u.item, prepend=-1) > 0
    return _add(entities.count_entities(u.gold, u.predicted, first, scheme), u, by_item)


def scored_labels(encoded: Encoded) -> np.ndarray:
    """Ids of the labels that are scored, in order: [C'] int."""
    unscored = set(encoded.unscored)
    return np.array([c for c in range(encoded.num_labels) if c not in unscored], int)


def _compare_strings(predictions: np.ndarray, encoded: Encoded) -> np.ndarray:
    """The fields of `strings.Comparison`: [P, items, 5]; each pair compared once."""
    found = np.zeros((*predictions.shape, 5))
    for item, reference in enumerate(encoded.references):
        known: dict[str, strings.Comparison] = {}
        for candidate, text in enumerate(predictions[:, item]):
            if text not in known:
                known[text] = strings.compare(text, reference["answers"])
            found[candidate, item] = known[text]
    return found


def _add(stats: np.ndarray, u: Units, by_item: bool) -> np.ndarray:
    """[P, U, S] of units into [P, S], or [P, items, S]."""
    if not by_item:
        return stats.sum(axis=1, dtype=np.float64)
    if len(u.item) == u.items:
        return stats.astype(np.float64)
    total = np.zeros((len(stats), u.items, stats.shape[-1]))
    for candidate, values in enumerate(stats):
        np.add.at(total[candidate], u.item, values)
    return total


def _whole(stats: np.ndarray, by_item: bool) -> np.ndarray:
    return stats if by_item else stats.sum(axis=1)
