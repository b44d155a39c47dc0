"""Test rows that the origin has learned from: found, left out, and counted."""

from collections.abc import Sequence

import numpy as np

from fusion_jax.data import Task
from fusion_jax.data.task import Row
from fusion_jax.evaluation.bootstrap import resample
from fusion_jax.evaluation.metrics import METRICS
from fusion_jax.evaluation.scoring import Scores

LEARNED_FROM = ("train", "dev")
"""Splits of the origin's data that its module depends on."""


def normalised(row: Row) -> str:
    """A row's text in lower case, with letters and digits alone."""
    parts = [str(row.get(name) or "") for name in ("context", "text", "text_pair")]
    parts += [str(word) for word in row.get("tokens") or ()]
    return "".join(c for c in " ".join(parts).lower() if c.isalnum())


def unseen_items(origin: Task, receiver: Task) -> np.ndarray:
    """Which test rows of the receiver's data the origin's module knows nothing of.

    Args:
      origin: data of the origin, as it was trained on.
      receiver: data of the receiver.

    Returns:
      [rows of test] bool.

    Raises:
      ValueError: none is left.
    """
    known = {
        normalised(row)
        for split in LEARNED_FROM
        for row in origin.splits.get(split, ())
    }
    unseen = np.array([normalised(row) not in known for row in receiver.rows("test")])
    if not unseen.any():
        raise ValueError(
            f"every test row of {receiver.name} occurs in the training data of "
            f"{origin.name}: nothing is left to test on; leave {origin.name}:"
            f"{receiver.name} out of the combinations"
        )
    return unseen


def of_items(scores: Scores, items: np.ndarray) -> Scores:
    """The scores of some items; losses stay those of all.

    Args:
      scores: of a split.
      items: [items of the split] bool.
    """
    stats = tuple(part[items] for part in scores.stats)
    values = {
        name: float(METRICS[name].value(part.sum(axis=0)))
        for name, part in zip(scores.values, stats, strict=True)
    }
    return scores._replace(
        values=values, mean=float(np.mean(list(values.values()))), stats=stats
    )


def draws_of(scores: Sequence[Scores]) -> np.ndarray:
    """The bootstrap draws of each score, [runs, draws] float32.

    Equal numbers of items are drawn in pairs, so that differences of rows are paired.
    """
    return np.stack([resample(one) for one in scores]).astype(np.float32)
