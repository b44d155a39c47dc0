"""Weights without a search."""

import numpy as np
import pytest

from fusion_jax.search import soups


@pytest.mark.parametrize("count", [1, 2, 7])
def test_weights_lie_on_the_simplex(count):
    rows = [
        soups.uniform(count),
        *soups.one_hot(count),
        soups.loss_softmax(np.linspace(0, 9, count)),
        *soups.random_candidates(count, 20, seed=0),
        soups.greedy(lambda w: float(w.max()), np.arange(count))[0],
    ]
    for row in rows:
        assert row.shape == (count,) and row.dtype == np.float32
        assert (row >= 0).all() and row.sum() == pytest.approx(1, abs=1e-6)


def test_random_candidates_depend_on_the_seed_alone_and_fill_the_simplex():
    first = soups.random_candidates(3, 2000, seed=1)
    np.testing.assert_array_equal(first, soups.random_candidates(3, 2000, seed=1))
    assert not np.array_equal(first, soups.random_candidates(3, 2000, seed=2))
    # Uniform on the simplex: mean 1/K, variance (K - 1) / K^2 / (K + 1).
    np.testing.assert_allclose(first.mean(axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(first.var(axis=0), 2 / 9 / 4, atol=0.01)


def test_the_greedy_soup_keeps_who_makes_it_better():
    target = np.array([0.5, 0.0, 0.5, 0.0])
    asked = []

    def quality(weights):
        asked.append(weights)
        return -float(np.sum((weights - target) ** 2))

    alone = np.array([quality(row) for row in soups.one_hot(4)])
    asked.clear()
    weights, evaluations = soups.greedy(quality, alone)
    np.testing.assert_allclose(weights, target)
    assert evaluations == len(asked) == 3


def test_the_greedy_soup_takes_a_tie_for_no_gain_and_is_never_below_the_best():
    weights, _ = soups.greedy(lambda _: 0.7, np.array([0.1, 0.7, 0.3]))
    np.testing.assert_array_equal(weights, [0, 1, 0])


def test_the_greedy_soup_starts_at_the_first_of_equals():
    weights, _ = soups.greedy(lambda _: 0.0, np.array([0.5, 0.5]))
    np.testing.assert_array_equal(weights, [1, 0])


def test_loss_softmax_is_the_formula_and_sees_no_shift():
    losses = np.array([0.3, 1.4, 2.0])
    expected = np.exp(-losses / 0.7) / np.exp(-losses / 0.7).sum()
    found = soups.loss_softmax(losses, temperature=0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(soups.loss_softmax(losses + 1e4, 0.7), expected, 1e-5)
    assert np.argmax(soups.loss_softmax(losses)) == 0
