import numpy as np
import pytest

from fusion_jax.evaluation import bootstrap
from fusion_jax.evaluation.readout import TEMPERATURES
from fusion_jax.evaluation.scoring import score


@pytest.fixture
def scores_of(make_encoded):
    def make(right, metrics=("accuracy",)):
        rows = len(right)
        encoded = make_encoded("single_label", [0] * rows, num_labels=2)
        logits = np.where(np.asarray(right)[:, None], [1.0, 0.0], [0.0, 1.0])
        readout = {
            "logits": logits,
            "loss": np.zeros(rows),
            "tempered": np.zeros((rows, len(TEMPERATURES))),
        }
        return score(readout, encoded, metrics)

    return make


def test_standard_error_of_accuracy_is_the_binomial_one(scores_of):
    right = np.arange(400) < 280
    expected = np.sqrt(0.7 * 0.3 / 400)
    found = bootstrap.standard_error(scores_of(right), n=4000)
    assert found == pytest.approx(expected, rel=0.05)
    low, high = bootstrap.interval(scores_of(right), n=4000)
    assert low == pytest.approx(0.7 - 1.96 * expected, abs=0.006)
    assert high == pytest.approx(0.7 + 1.96 * expected, abs=0.006)


def test_draws_hold_as_many_items_as_the_split_and_repeat_by_seed():
    drawn = np.concatenate(list(bootstrap._draws(13, 150, 3)))
    assert drawn.shape == (150, 13)
    assert (drawn.sum(1) == 13).all()
    np.testing.assert_array_equal(
        drawn, np.concatenate(list(bootstrap._draws(13, 150, 3)))
    )


def test_pairs_of_one_model_differ_by_nothing(scores_of):
    scores = scores_of(np.arange(50) % 3 > 0, ("accuracy", "f1_macro"))
    difference = bootstrap.paired_difference(scores, scores)
    assert difference == (0.0, 0.0, 0.0, 0.0)


def test_pairing_is_narrower_than_two_intervals(scores_of):
    worse = np.arange(300) % 3 > 0
    better = worse.copy()
    better[::15] = True
    a, b = scores_of(better), scores_of(worse)
    difference = bootstrap.paired_difference(a, b)
    assert difference.mean == pytest.approx(better.mean() - worse.mean())
    assert difference.low > 0
    assert difference.standard_error < bootstrap.standard_error(a)


def test_scores_of_different_splits_cannot_be_paired(scores_of):
    with pytest.raises(ValueError, match=r"50 items .* 40 items"):
        bootstrap.paired_difference(
            scores_of(np.ones(50, bool)), scores_of(np.ones(40, bool))
        )


def test_all_right_has_no_width(scores_of):
    assert bootstrap.interval(scores_of(np.ones(20, bool))) == (1.0, 1.0)
