import numpy as np
import pytest

from fusion_jax.evaluation.objectives import METRIC_STEP, OBJECTIVES
from fusion_jax.evaluation.readout import TEMPERATURES
from fusion_jax.evaluation.scoring import score_many

METRICS = ("accuracy", "f1_macro")


def population(generator, logits):
    lead = logits.shape[:2]
    return {
        "logits": logits,
        "loss": generator.random(lead),
        "tempered": generator.random((*lead, len(TEMPERATURES))),
    }


@pytest.fixture
def case(generator, make_encoded):
    gold = generator.integers(0, 3, 40)
    encoded = make_encoded("single_label", gold.tolist(), num_labels=3)
    return population(generator, generator.normal(size=(8, 40, 3))), encoded


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_objectives_give_one_number_a_candidate(name, case):
    readout, encoded = case
    fitness = OBJECTIVES[name](readout, encoded, METRICS)
    assert fitness.shape == (8,)
    assert fitness.dtype == np.float64
    order = [5, 2, 7]
    some = OBJECTIVES[name]({k: v[order] for k, v in readout.items()}, encoded, METRICS)
    np.testing.assert_allclose(some, fitness[order], rtol=1e-12)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_what_is_not_a_number_is_the_worst(name, case):
    readout, encoded = case
    for values in readout.values():
        values[3] = np.nan
    fitness = OBJECTIVES[name](readout, encoded, METRICS)
    assert fitness[3] == np.inf
    assert np.isfinite(np.delete(fitness, 3)).all()


def test_metric_orders_by_the_score_and_then_by_the_loss(case):
    readout, encoded = case
    readout["logits"][4] = readout["logits"][1]
    scores = score_many(readout, encoded, METRICS)
    fitness = OBJECTIVES["metric"](readout, encoded, METRICS)
    expected = np.lexsort([scores.loss, -scores.mean])
    assert np.argsort(fitness).tolist() == expected.tolist()
    assert 0 < abs(fitness[4] - fitness[1]) < METRIC_STEP
    np.testing.assert_allclose(fitness, -scores.mean, atol=METRIC_STEP)


def test_the_tie_break_sees_small_and_large_losses(case):
    readout, encoded = case
    readout["logits"][:] = readout["logits"][0]
    readout["loss"] = np.array([0.5, 0.5 + 1e-5, 2.0, 2.0 + 1e-5, 9, 80, 81, 0])[
        :, None
    ].repeat(40, 1)
    fitness = OBJECTIVES["metric"](readout, encoded, METRICS)
    assert np.argsort(fitness).tolist() == [7, 0, 1, 2, 3, 4, 5, 6]


def test_calibrated_tie_break_uses_the_calibrated_loss(case):
    readout, encoded = case
    readout["logits"][:] = readout["logits"][0]
    fitness = OBJECTIVES["metric_calibrated"](readout, encoded, METRICS)
    calibrated = OBJECTIVES["calibrated_loss"](readout, encoded, METRICS)
    assert np.argsort(fitness).tolist() == np.argsort(calibrated).tolist()


def test_soft_f1_of_certain_answers_is_one_minus_macro_f1(generator, make_encoded):
    gold = generator.integers(0, 3, 40)
    predicted = generator.integers(0, 3, (5, 40))
    encoded = make_encoded("single_label", gold.tolist(), num_labels=3)
    readout = population(generator, 200.0 * np.eye(3)[predicted])
    soft = OBJECTIVES["soft_f1"](readout, encoded, ("f1_macro",))
    hard = score_many(readout, encoded, ("f1_macro",)).mean
    np.testing.assert_allclose(soft, 1 - hard, rtol=1e-9)


def test_soft_f1_of_label_sets_and_choices(generator, make_encoded):
    gold = generator.random((30, 4)) < 0.5
    predicted = generator.random((3, 30, 4)) < 0.5
    references = [tuple(np.flatnonzero(row)) for row in gold]
    encoded = make_encoded("multi_label", references, num_labels=4)
    readout = population(generator, np.where(predicted, 90.0, -90.0))
    np.testing.assert_allclose(
        OBJECTIVES["soft_f1"](readout, encoded, ()),
        1 - score_many(readout, encoded, ("f1_macro",)).mean,
        rtol=1e-9,
    )
    choice = make_encoded("choice", [0, 1], num_labels=2)
    readout = population(generator, np.log([[[0.25, 0.75], [0.5, 0.5]]]))
    assert OBJECTIVES["soft_f1"](readout, choice, ())[0] == pytest.approx(0.625)


@pytest.mark.parametrize("kind", ["span", "token"])
def test_soft_f1_without_probabilities_says_what_to_use(kind, make_encoded):
    with pytest.raises(ValueError, match="use calibrated_loss"):
        OBJECTIVES["soft_f1"]({}, make_encoded(kind, [], num_labels=2), ())


def test_auto_is_the_smooth_one_where_there_are_probabilities(case, make_encoded):
    readout, encoded = case
    smooth = OBJECTIVES["soft_f1"](readout, encoded, METRICS)
    np.testing.assert_array_equal(OBJECTIVES["auto"](readout, encoded, METRICS), smooth)
    tags = make_encoded("token", [{"tags": [0, 1]}] * 2, num_labels=2)
    with pytest.raises(ValueError, match="soft_f1 needs class probabilities"):
        OBJECTIVES["soft_f1"]({"logits": np.zeros(0)}, tags, ("accuracy",))
