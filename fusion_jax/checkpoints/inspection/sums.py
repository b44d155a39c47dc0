"""What an inspection adds up over a run of elements of K models, and how two add."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sums:
    """Additive facts about K models and their reference over some elements.

    Attributes:
      size: elements.
      gram: [K + 1, K + 1] inner products of the K deltas and, last, the reference.
      same: [K, K] elements where both deltas are non-zero and of one sign.
      both: [K, K] elements where both deltas are non-zero.
      same_all: elements where all K deltas are non-zero and of one sign.
      both_all: elements where all K deltas are non-zero.
      largest: [K] the largest |delta|; joined by the maximum.
      equal: [K, K] whether two models hold the same values; joined by 'and'.
      bad: [K + 1] elements that are NaN or infinite, the base's last (0 without one).
        Where one is not 0, the other numbers mean nothing.
    """

    size: int
    gram: np.ndarray
    same: np.ndarray
    both: np.ndarray
    same_all: int
    both_all: int
    largest: np.ndarray
    equal: np.ndarray
    bad: np.ndarray

    def __add__(self, other: "Sums") -> "Sums":
        """The sums over the elements of both."""
        return Sums(
            self.size + other.size,
            self.gram + other.gram,
            self.same + other.same,
            self.both + other.both,
            self.same_all + other.same_all,
            self.both_all + other.both_all,
            np.maximum(self.largest, other.largest),
            self.equal & other.equal,
            self.bad + other.bad,
        )


def nothing(count: int) -> Sums:
    """The sums of K models over no element."""
    square = np.zeros((count, count), np.int64)
    return Sums(
        0,
        np.zeros((count + 1, count + 1)),
        square,
        square,
        0,
        0,
        np.zeros(count),
        np.ones((count, count), bool),
        np.zeros(count + 1, np.int64),
    )


def sums_of(models: Sequence[np.ndarray], base: np.ndarray | None) -> Sums:
    """d_k = w_k - r with r = base, or (1/K) sum_k w_k without one, and their sums.

    Values are widened to float64 before the difference, so that float32 and narrower
    files are differenced exactly or to 2^-53; products and sums are float64.

    Args:
      models: K flat arrays [n] of any floating dtype.
      base: [n], or None.

    Returns:
      The sums over the n elements.
    """
    count = len(models)
    # One block for all, so that each element is read from the file's pages once.
    block = np.empty((count + 1, len(models[0])))
    for row, model in enumerate(models):
        block[row] = model
    deltas, reference = block[:count], block[count]
    # Before the differences: two values may have one difference after rounding.
    equal = np.eye(count, dtype=bool)
    for i in range(count):
        for j in range(i):
            equal[i, j] = equal[j, i] = _equal(block[i], block[j])
    with np.errstate(invalid="ignore", over="ignore"):
        reference[:] = deltas.mean(axis=0) if base is None else base
        bad = np.zeros(count + 1, np.int64)
        if not np.isfinite(np.einsum("kn->k", block)).all():
            bad = np.count_nonzero(~np.isfinite(block), axis=1)
            bad[count] *= base is not None
        deltas -= reference
        gram = block @ block.T
        largest = np.abs([deltas.max(axis=1), deltas.min(axis=1)]).max(axis=0)
    positive = np.packbits(deltas > 0, axis=1)
    negative = np.packbits(deltas < 0, axis=1)
    moved = positive | negative
    same = np.zeros((count, count), np.int64)
    both = np.zeros((count, count), np.int64)
    for i in range(count):
        for j in range(i + 1):
            same[i, j] = same[j, i] = _ones(positive[i] & positive[j]) + _ones(
                negative[i] & negative[j]
            )
            both[i, j] = both[j, i] = _ones(moved[i] & moved[j])
    return Sums(
        block.shape[1],
        gram,
        same,
        both,
        _ones(_meet(positive)) + _ones(_meet(negative)),
        _ones(_meet(moved)),
        largest,
        equal,
        bad,
    )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """The first elements decide almost always: the rest is then not read."""
    return np.array_equal(one[:64], other[:64]) and np.array_equal(one, other)


def _meet(bits: np.ndarray) -> np.ndarray:
    return functools.reduce(operator.and_, bits)


def _ones(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))
