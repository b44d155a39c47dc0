import numpy as np
import pytest

from fusion_jax.evaluation.metrics import METRICS
from fusion_jax.evaluation.strings import compare, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Coffee-House!", "coffeehouse"),
        ("an apple a day", "apple day"),
        ("Ross's theory", "rosss theory"),
        ("another theater", "another theater"),
        ("  \t\n", ""),
        ("“curly” quotes", "“curly” quotes"),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


def test_the_best_gold_string_counts_wherever_it_stands():
    golds = ["the blue cat", "a blue", "dog"]
    for order in (golds, golds[::-1]):
        found = compare("Blue cat.", order)
        assert found == (1.0, 1.0, 2, 2, 2)


def test_f1_counts_repeated_words_once_each():
    found = compare("no no no", ["no no way"])
    assert found.f1 == pytest.approx(2 * 2 / 6)
    assert found.exact == 0.0


def test_empty_answers():
    assert compare("", [""]).f1 == 1.0
    assert compare("the", ["a"]) == (1.0, 1.0, 0, 0, 0)
    assert compare("cat", [""]).f1 == 0.0
    assert compare("", ["cat"]) == (0.0, 0.0, 0, 0, 1)
    assert compare("", []).exact == 1.0
    assert compare("cat", []).exact == 0.0


def test_pooled_token_f1_uses_the_best_gold_and_survives_no_match(make_encoded):
    references = [
        {"answers": ["blue cat", "cat"]},  # best: all of 'blue cat'
        {"answers": ["red fox jumps"]},
        {"answers": ["green"]},
    ]
    encoded = make_encoded("span", references)

    def values(texts):
        predicted = np.array(texts, object)
        return [
            float(METRICS[n].value(METRICS[n].stats(predicted, encoded).sum(0)))
            for n in ("exact_match", "token_f1", "token_f1_micro")
        ]

    exact, macro, micro = values(["a blue cat", "fox", "blue"])
    assert exact == pytest.approx(1 / 3)
    assert macro == pytest.approx((1.0 + 2 * 1 / 4 + 0.0) / 3)
    assert micro == pytest.approx(2 * 3 / (4 + 6))
    assert values(["x", "y", "z"]) == [0.0, 0.0, 0.0]
