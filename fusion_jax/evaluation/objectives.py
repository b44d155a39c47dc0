"""Fitness functions of the search: readouts of a population to numbers to minimise."""

from collections.abc import Callable, Sequence

import numpy as np

from fusion_jax.data.encoded import Encoded
from fusion_jax.evaluation.calibration import calibrate
from fusion_jax.evaluation.counts import scored_labels, units
from fusion_jax.evaluation.predictions import parse_decision, softmax
from fusion_jax.evaluation.readout import Readout
from fusion_jax.evaluation.scoring import mean_over_rows, score_many

Objective = Callable[[Readout, Encoded, Sequence[str]], np.ndarray]

WITHOUT_PROBABILITIES = ("span", "token")
"""Kinds whose readout keeps no probability of each class."""

METRIC_STEP = 1e-8
"""Scores closer than this are a tie; the tie-break moves the fitness by less."""


def loss(readout: Readout, encoded: Encoded, metrics: Sequence[str]) -> np.ndarray:
    """Mean loss of the rows.

    Args:
      readout: arrays [P, N, ...] of P candidates, in the order of the split's rows.
      encoded: the split.
      metrics: names of the task's metrics.

    Returns:
      [P] float64, lower is better; +inf where it is not a number.
    """
    return _finite(mean_over_rows(readout, "loss"))


def calibrated_loss(
    readout: Readout, encoded: Encoded, metrics: Sequence[str]
) -> np.ndarray:
    """Mean loss at each candidate's best temperature.

    Cross-entropy punishes overconfidence, which merging changes at no cost to the
    decisions; after one fitted temperature that is out of the comparison. Arguments
    and result as in `loss`.
    """
    return _finite(calibrate(mean_over_rows(readout, "tempered"))[0])


def soft_f1(readout: Readout, encoded: Encoded, metrics: Sequence[str]) -> np.ndarray:
    """1 - F1 of expected counts, a smooth stand-in for the metric.

    F1_c = 2 sum_n p_nc y_nc / sum_n (p_nc + y_nc), the mean over the scored classes
    that occur in the gold answers. Candidates of a choice task are no classes: their
    counts are pooled, which gives the mean probability of the gold candidate.
    Arguments and result as in `loss`.

    Raises:
      ValueError: the kind has no class probabilities in its readout.
    """
    if encoded.kind in WITHOUT_PROBABILITIES:
        raise ValueError(
            f"{encoded.task_name}: soft_f1 needs class probabilities, which a "
            f"{encoded.kind} task does not keep; use calibrated_loss or metric"
        )
    logits = np.asarray(readout["logits"])
    rows = units(np.zeros(0), encoded).gold[np.asarray(encoded.items)]
    if encoded.kind == "choice":
        gold = np.arange(logits.shape[-1]) == rows[:, None]
        chance = np.einsum("pnc,nc->pn", softmax(logits), gold.astype(logits.dtype))
        return _finite(1.0 - chance.mean(axis=1, dtype=np.float64))
    logits = logits[..., : encoded.num_labels]
    if encoded.kind == "multi_label":
        gold = rows
        soft = parse_decision(encoded.decision)[0] == "softmax"
        chance = softmax(logits) if soft else 0.5 * (1.0 + np.tanh(0.5 * logits))
    else:
        gold = np.arange(encoded.num_labels) == rows[:, None]
        chance = softmax(logits)
    scored = scored_labels(encoded)
    gold = gold[:, scored].astype(np.float32)
    common = np.einsum("pnc,nc->pc", chance[..., scored], gold, dtype=np.float64)
    total = chance[..., scored].sum(axis=1, dtype=np.float64) + gold.sum(axis=0)
    occurs = gold.any(axis=0)
    f1 = (2 * common / np.where(occurs, total, 1.0))[:, occurs]
    return _finite(1.0 - f1.mean(axis=1) if occurs.any() else np.ones(len(logits)))


def metric(readout: Readout, encoded: Encoded, metrics: Sequence[str]) -> np.ndarray:
    """Minus the score; equal scores are ordered by the loss.

    Arguments and result as in `loss`. Keep it in float64, or pass on its ranks: the
    tie-break is below what float32 can tell apart.
    """
    scores = score_many(readout, encoded, metrics)
    return _lexicographic(scores.mean, scores.loss)


def metric_calibrated(
    readout: Readout, encoded: Encoded, metrics: Sequence[str]
) -> np.ndarray:
    """Minus the score; equal scores are ordered by the calibrated loss.

    Arguments, result and the word on precision as in `metric`.
    """
    scores = score_many(readout, encoded, metrics)
    return _lexicographic(scores.mean, scores.calibrated_loss)


def auto(readout: Readout, encoded: Encoded, metrics: Sequence[str]) -> np.ndarray:
    """`soft_f1` where the kind has class probabilities, else `metric_calibrated`.

    On dev sets of a few hundred rows soft F1 ranked candidates much as their test
    scores did, the metric less so and losses hardly (docs/results.md). Arguments and
    result as in `loss`.
    """
    soft = encoded.kind not in WITHOUT_PROBABILITIES
    return (soft_f1 if soft else metric_calibrated)(readout, encoded, metrics)


OBJECTIVES: dict[str, Objective] = {
    "auto": auto,
    "loss": loss,
    "calibrated_loss": calibrated_loss,
    "soft_f1": soft_f1,
    "metric": metric,
    "metric_calibrated": metric_calibrated,
}


def _lexicographic(score: np.ndarray, tie_break: np.ndarray) -> np.ndarray:
    """-score on a grid of `METRIC_STEP`, plus l / (1 + l) of less than half a step."""
    steps = np.round(score / METRIC_STEP)
    bounded = tie_break / (1.0 + tie_break)
    return _finite(METRIC_STEP * (0.5 * bounded - steps))


def _finite(fitness: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(fitness), np.inf, np.asarray(fitness, np.float64))
