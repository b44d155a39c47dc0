"""Scores of one model, or of a population, from readouts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.data.encoded import Encoded
from fusion_jax.evaluation.calibration import calibrate
from fusion_jax.evaluation.metrics import METRICS, check_metrics
from fusion_jax.evaluation.predictions import predict
from fusion_jax.evaluation.readout import Readout


class Scores(NamedTuple):
    """How good one model is on a split.

    Attributes:
      values: metric name -> value in [0, 1].
      mean: the score, the unweighted mean of the values.
      stats: for each metric, in order, the additive statistics [items, S].
      loss: weighted mean of the rows' losses.
      calibrated_loss: the same at the temperature where it is smallest.
    """

    values: dict[str, float]
    mean: float
    stats: tuple[np.ndarray, ...]
    loss: float
    calibrated_loss: float


class ManyScores(NamedTuple):
    """How good P candidates are on a split; fields as in `Scores`, each [P] float64."""

    values: dict[str, np.ndarray]
    mean: np.ndarray
    loss: np.ndarray
    calibrated_loss: np.ndarray


def score(readout: Readout, encoded: Encoded, metrics: Sequence[str]) -> Scores:
    """Scores one model.

    Args:
      readout: arrays [N, ...] in the order of the split's rows.
      encoded: the split.
      metrics: names, keys of `METRICS`; their mean is the score.

    Returns:
      Scores.

    Raises:
      ValueError: a metric is unknown or does not fit the kind; the split is empty.
    """
    _check(encoded, metrics)
    predictions = predict(readout, encoded)
    stats = tuple(METRICS[name].stats(predictions, encoded) for name in metrics)
    values = {
        name: float(METRICS[name].value(counts.sum(axis=0)))
        for name, counts in zip(metrics, stats, strict=True)
    }
    return Scores(
        values,
        float(np.mean(list(values.values()))),
        stats,
        float(mean_over_rows(readout, "loss")),
        float(calibrate(mean_over_rows(readout, "tempered"))[0]),
    )


def score_many(
    readouts: Readout, encoded: Encoded, metrics: Sequence[str]
) -> ManyScores:
    """Scores P candidates at once; the same numbers as `score` one by one.

    Args:
      readouts: arrays [P, N, ...] in the order of the split's rows.
      encoded: the split.
      metrics: names, keys of `METRICS`.

    Returns:
      ManyScores of [P] float64.

    Raises:
      ValueError: as `score`.
    """
    _check(encoded, metrics)
    predictions = predict(readouts, encoded)
    # Several metrics are functions of one count: count once.
    counters = {METRICS[name].counts for name in metrics}
    sums = {counts: counts(predictions, encoded, False) for counts in counters}
    values = {name: METRICS[name].value(sums[METRICS[name].counts]) for name in metrics}
    return ManyScores(
        values,
        np.mean(list(values.values()), axis=0),
        mean_over_rows(readouts, "loss"),
        calibrate(mean_over_rows(readouts, "tempered"))[0],
    )


def mean_over_rows(readout: Readout, name: str) -> np.ndarray:
    """Weighted mean over the rows, in float64: sum_n w_n x_n / sum_n w_n.

    Args:
      readout: arrays [..., N] or [..., N, J]; 'weight' is 1 where it is absent.
      name: 'loss' or 'tempered'.

    Returns:
      [...] or [..., J]; 0 where no row weighs anything.
    """
    loss = np.asarray(readout["loss"])
    values = np.asarray(readout[name], np.float64)
    weight = readout.get("weight")
    weight = np.ones(loss.shape) if weight is None else np.asarray(weight, np.float64)
    total = np.maximum(weight.sum(axis=-1), 1e-30)
    if values.ndim == loss.ndim:
        return (values * weight).sum(axis=-1) / total
    # einsum and not a product: [P, N, J] in float64 is large enough already.
    return np.einsum("...nj,...n->...j", values, weight) / total[..., None]


def _check(encoded: Encoded, metrics: Sequence[str]) -> None:
    check_metrics(encoded.kind, metrics, encoded.task_name)
    if not len(encoded.references):
        raise ValueError(f"{encoded.task_name}: the split has no items to score")
