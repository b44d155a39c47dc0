"""Metrics as sums over items, so that any split of the data gives the same number.

A metric counts: every item has a row of additive statistics, and the value is a
function of their sum. Chunks, shards, bootstrap samples and populations all reduce to
adding rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.data.encoded import Encoded
from fusion_jax.evaluation import counts

Counts = Callable[[np.ndarray, Any, bool], np.ndarray]


class Metric(NamedTuple):
    """A number in [0, 1], larger is better, as a function of additive counts.

    Attributes:
      counts: `(predictions [P, ...], encoded, by_item)` -> float64 [P, S], or
        [P, items, S] when `by_item`.
      value: `(sums [..., S])` -> [...] float64; 0 where it would be 0 / 0.
      kinds: kinds of task it is defined for.
    """

    counts: Counts
    value: Callable[[np.ndarray], np.ndarray]
    kinds: tuple[str, ...]

    def stats(self, predictions: np.ndarray, encoded: Encoded) -> np.ndarray:
        """Additive statistics of each item: [items, S] float64."""
        return self.counts(predictions[None], encoded, True)[0]

    def sums(self, predictions: np.ndarray, encoded: Encoded) -> np.ndarray:
        """Their sums for a population: [P, ...] predictions -> [P, S] float64."""
        return self.counts(predictions, encoded, False)


def _share(sums: np.ndarray) -> np.ndarray:
    return _divide(sums[..., 0], sums[..., 1])


def _f1_pooled(sums: np.ndarray) -> np.ndarray:
    """F1 of [right, predicted, gold]."""
    return _divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _class_f1(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tp, fp, fn, counted = np.moveaxis(sums.reshape(*sums.shape[:-1], 4, -1), -2, 0)
    return _divide(2 * tp, 2 * tp + fp + fn), tp + fn, counted > 0


def _f1_micro(sums: np.ndarray) -> np.ndarray:
    tp, fp, fn, _ = np.moveaxis(
        sums.reshape(*sums.shape[:-1], 4, -1).sum(axis=-1), -1, 0
    )
    return _divide(2 * tp, 2 * tp + fp + fn)


def _f1_macro(sums: np.ndarray) -> np.ndarray:
    f1, _, counted = _class_f1(sums)
    return _divide((f1 * counted).sum(-1), counted.sum(-1))


def _f1_weighted(sums: np.ndarray) -> np.ndarray:
    f1, support, _ = _class_f1(sums)
    return _divide((f1 * support).sum(-1), support.sum(-1))


_ONE_CLASS = ("single_label", "text_to_text")
_CLASSES = (*_ONE_CLASS, "multi_label", "token")

METRICS: dict[str, Metric] = {
    "accuracy": Metric(counts.correct, _share, (*_CLASSES, "choice")),
    "f1_micro": Metric(counts.classes, _f1_micro, _CLASSES),
    "f1_macro": Metric(counts.classes, _f1_macro, _CLASSES),
    "f1_weighted": Metric(counts.classes, _f1_weighted, _CLASSES),
    "exact_match": Metric(counts.exact, _share, (*_CLASSES, "choice", "span")),
    "token_f1": Metric(counts.words_f1, _share, ("span",)),
    "token_f1_micro": Metric(counts.words, _f1_pooled, ("span",)),
    "f1_span": Metric(counts.entity_counts, _f1_pooled, ("token",)),
    "label_accuracy": Metric(counts.correct_labels, _share, ("multi_label",)),
}

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "single_label": ("accuracy", "f1_macro"),
    "multi_label": ("f1_micro",),
    "choice": ("accuracy",),
    "span": ("exact_match", "token_f1"),
    "token": ("f1_span",),
    "text_to_text": ("accuracy", "f1_macro"),
}


def check_metrics(kind: str, metrics: Sequence[str], task: str = "task") -> None:
    """Raises ValueError if a name is unknown or not defined for the kind."""
    fitting = [name for name, metric in METRICS.items() if kind in metric.kinds]
    wrong = [name for name in metrics if name not in fitting]
    if wrong or not metrics:
        raise ValueError(
            f"{task}: {'no metric is named' if not wrong else f'metrics {wrong}'}"
            f"{' do not fit' if wrong else ' for'} kind {kind!r}; choose among "
            f"{', '.join(fitting) or 'none: the kind is unknown'}"
        )


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quotient in float64, 0 where the divisor is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.where(b != 0, a, 0.0) / np.where(b != 0, b, 1.0)
