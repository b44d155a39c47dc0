"""The exact k-th largest of rows that are read piece by piece."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.checkpoints import selection


def streamed(rows, bounds):
    """Pieces of the rows between the bounds, and how often they were asked for."""
    asked = []

    def pieces():
        asked.append(1)
        for start, stop in zip([0, *bounds], [*bounds, rows.shape[1]], strict=True):
            yield start, rows[:, start:stop]

    return pieces, asked


def kept(rows, line):
    places = np.arange(rows.shape[1])
    value, last = line.value[:, None], line.last[:, None]
    return (rows > value) | ((rows == value) & (places <= last))


def largest(row, count):
    """By a stable sort: of equal entries the first."""
    keep = np.zeros(len(row), bool)
    keep[np.argsort(-row, kind="stable")[:count]] = True
    return keep


VALUES = {
    "ties": lambda r, n: r.integers(0, 4, (2, n)),
    "constant": lambda r, n: np.full((2, n), 0.5),
    "zeros": lambda r, n: np.zeros((2, n)),
    "mostly zeros": lambda r, n: r.normal(size=(2, n)) * (r.random((2, n)) < 0.1),
    "continuous": lambda r, n: r.normal(size=(2, n)),
    "sorted": lambda r, n: np.sort(r.normal(size=(2, n)), axis=1),
    "heavy tails": lambda r, n: np.exp(20 * r.normal(size=(2, n))),
}


@pytest.mark.parametrize("kind", VALUES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 400),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    sample=st.sampled_from(("even", "first", "largest", "one", "none")),
    num_cuts=st.integers(0, 6),
)
def test_exactly_as_many_as_asked_are_kept_whatever_the_sample_says(
    kind, seed, size, shares, sample, num_cuts
):
    random = np.random.default_rng(seed)
    rows = np.abs(VALUES[kind](random, size)).astype(np.float32)
    counts = np.rint(np.array(shares) * size).astype(np.int64)
    bounds = sorted(random.integers(0, size + 1, num_cuts).tolist())
    pieces, _ = streamed(rows, bounds)
    samples = {
        "even": rows[:, :: max(1, size // 50)],
        "first": rows[:, : max(1, size // 8)],
        "largest": np.sort(rows, axis=1)[:, -max(1, size // 8) :],
        "one": rows[:, :1],
        "none": rows[:, :0],
    }
    line = selection.select(pieces, samples[sample], counts, size)
    keep = kept(rows, line)
    np.testing.assert_array_equal(keep.sum(axis=1), counts)
    for r in range(2):
        np.testing.assert_array_equal(keep[r], largest(rows[r], counts[r]))


def test_every_count_from_none_to_all_is_met():
    rows = np.array([[3, 1, 3, 0, 0, 2, 3, 0]], np.float32)
    for count in range(9):
        pieces, _ = streamed(rows, [3, 5])
        line = selection.select(pieces, rows[:, ::3], np.array([count]), 8)
        np.testing.assert_array_equal(kept(rows, line)[0], largest(rows[0], count))


def test_one_count_serves_all_rows():
    rows = np.abs(np.random.default_rng(0).normal(size=(3, 100))).astype(np.float32)
    pieces, _ = streamed(rows, [40])
    line = selection.select(pieces, rows[:, ::4], np.array(20), 100)
    np.testing.assert_array_equal(kept(rows, line).sum(axis=1), [20, 20, 20])


def test_an_even_sample_takes_one_pass_and_a_misleading_one_a_few():
    rows = np.sort(np.random.default_rng(0).random((1, 20_000)).astype(np.float32))
    pieces, asked = streamed(rows, [5_000, 11_000])
    selection.select(pieces, rows[:, ::20], np.array([4_000]), 20_000)
    assert len(asked) == 1
    pieces, asked = streamed(rows, [5_000, 11_000])
    line = selection.select(pieces, rows[:, :1_000], np.array([4_000]), 20_000)
    assert 1 < len(asked) <= 3
    assert kept(rows, line).sum() == 4_000


def test_all_and_none_read_nothing():
    def never():
        raise AssertionError("read")

    line = selection.select(never, np.zeros((2, 4), np.float32), np.array([0, 9]), 9)
    np.testing.assert_array_equal(line.value, [np.inf, -np.inf])
