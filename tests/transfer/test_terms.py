"""Terms that are counted, smoothed, and weighted."""

from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfTransformer

from fusion_jax.transfer.terms import (
    count_terms,
    distribution,
    inverse_document_frequency,
    presence,
    vocabulary,
)

TEXTS = [[5, 3, 3], [8], [3, 5, 5, 5]]


def test_counts_stop_at_the_budget():
    assert count_terms(TEXTS) == Counter({5: 4, 3: 3, 8: 1})
    assert count_terms(TEXTS, budget=4) == Counter({5: 1, 3: 2, 8: 1})
    assert count_terms(TEXTS, budget=2) == Counter({5: 1, 3: 1})


def test_one_vocabulary_is_of_the_most_frequent_terms_of_all():
    assert vocabulary([{1: 2, 7: 2}, {7: 1, 4: 2}], size=3) == [7, 1, 4]


def test_a_distribution_is_smoothed_and_sums_to_one():
    found = distribution({1: 3, 9: 50}, [1, 2, 3], smoothing=0.5)
    np.testing.assert_allclose(found, np.array([3.5, 0.5, 0.5]) / 4.5)
    assert presence({1: 3}, [1, 2]).tolist() == [1, 0]


def test_a_task_without_any_known_term_is_refused():
    with pytest.raises(ValueError, match="leave the task out"):
        distribution({9: 4}, [1, 2])
    with pytest.raises(ValueError, match="in 0 tokens"):
        distribution({}, [1, 2])


def test_weights_are_those_of_scikit_learn():
    terms = [3, 5, 8, 1]
    counts = np.array([[text.count(term) for term in terms] for text in TEXTS])
    expected = TfidfTransformer().fit(counts).idf_
    np.testing.assert_allclose(inverse_document_frequency(TEXTS, terms), expected)
