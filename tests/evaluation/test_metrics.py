import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from fusion_jax.evaluation.metrics import DEFAULT_METRICS, METRICS, check_metrics

AVERAGES = ("micro", "macro", "weighted")


def value(name, predictions, encoded):
    metric = METRICS[name]
    return float(metric.value(metric.stats(predictions, encoded).sum(axis=0)))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("absent", [0, 3])
@pytest.mark.parametrize("kind", ["single_label", "text_to_text"])
def test_class_f1_equals_scikit_learn(kind, average, absent, generator, make_encoded):
    gold = generator.integers(0, 7 - absent, 50)
    predicted = generator.integers(0, 7 - absent, 50)
    encoded = make_encoded(kind, gold.tolist(), num_labels=7)
    expected = sklearn_metrics.f1_score(gold, predicted, average=average)
    np.testing.assert_allclose(
        value(f"f1_{average}", predicted, encoded), expected, rtol=1e-12
    )


@pytest.mark.parametrize("average", AVERAGES)
def test_unscored_classes_equal_scikit_learn_labels(average, generator, make_encoded):
    gold, predicted = generator.integers(0, 5, (2, 60))
    encoded = make_encoded("single_label", gold.tolist(), num_labels=5, unscored=(1, 4))
    expected = sklearn_metrics.f1_score(
        gold, predicted, average=average, labels=[0, 2, 3]
    )
    np.testing.assert_allclose(
        value(f"f1_{average}", predicted, encoded), expected, rtol=1e-12
    )
    kept = np.isin(gold, [0, 2, 3])
    assert value("accuracy", predicted, encoded) == pytest.approx(
        (gold == predicted)[kept].mean()
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("unscored", [(), (0, 5)])
def test_multi_label_f1_equals_scikit_learn(average, unscored, generator, make_encoded):
    gold = generator.random((40, 6)) < 0.3
    predicted = generator.random((40, 6)) < 0.3
    gold[:, 2] = predicted[:, 2] = False  # a class that never occurs
    gold[3] = False
    references = [tuple(np.flatnonzero(row)) for row in gold]
    encoded = make_encoded("multi_label", references, num_labels=6, unscored=unscored)
    scored = [c for c in range(6) if c not in unscored]
    expected = sklearn_metrics.f1_score(
        gold[:, scored], predicted[:, scored], average=average, zero_division=0
    )
    np.testing.assert_allclose(
        value(f"f1_{average}", predicted, encoded), expected, rtol=1e-12
    )
    subset = sklearn_metrics.accuracy_score(gold[:, scored], predicted[:, scored])
    assert value("accuracy", predicted, encoded) == pytest.approx(subset)
    per_label = (gold == predicted)[:, scored].mean()
    assert value("label_accuracy", predicted, encoded) == pytest.approx(per_label)


def test_micro_f1_of_single_labels_is_accuracy(generator, make_encoded):
    gold, predicted = generator.integers(0, 4, (2, 30))
    encoded = make_encoded("single_label", gold.tolist(), num_labels=4)
    assert value("f1_micro", predicted, encoded) == pytest.approx(
        value("accuracy", predicted, encoded)
    )


def test_an_answer_that_is_no_class_is_wrong(make_encoded):
    encoded = make_encoded("single_label", [0, 1, 1], num_labels=2)
    predicted = np.array([-1, 1, 1])
    assert value("accuracy", predicted, encoded) == pytest.approx(2 / 3)
    expected = sklearn_metrics.f1_score(
        [0, 1, 1], predicted, average="macro", labels=[0, 1]
    )
    assert value("f1_macro", predicted, encoded) == pytest.approx(expected)


def test_statistics_add_up_over_any_cut_and_population(generator, make_encoded):
    gold = generator.integers(0, 3, 12)
    encoded = make_encoded("single_label", gold.tolist(), num_labels=3)
    candidates = generator.integers(0, 3, (5, 12))
    for name in ("accuracy", "f1_macro", "exact_match"):
        metric = METRICS[name]
        sums = metric.sums(candidates, encoded)
        for candidate, total in zip(candidates, sums, strict=True):
            stats = metric.stats(candidate, encoded)
            assert stats.dtype == np.float64
            assert len(stats) == 12
            np.testing.assert_array_equal(stats[:5].sum(0) + stats[5:].sum(0), total)


def test_statistics_of_drawn_items_give_the_metric_of_drawn_data(
    generator, make_encoded
):
    gold, predicted = generator.integers(0, 5, (2, 20))
    encoded = make_encoded("single_label", gold.tolist(), num_labels=5)
    drawn = generator.integers(0, 20, 20)
    for average in AVERAGES:
        metric = METRICS[f"f1_{average}"]
        sums = metric.stats(predicted, encoded)[drawn].sum(0)
        expected = sklearn_metrics.f1_score(
            gold[drawn], predicted[drawn], average=average
        )
        np.testing.assert_allclose(metric.value(sums), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", list(DEFAULT_METRICS))
def test_metrics_of_nothing_are_zero_and_not_nan(kind):
    for name in DEFAULT_METRICS[kind]:
        assert METRICS[name].value(np.zeros(4)) == 0.0


def test_words_are_scored_as_units_of_their_items(make_encoded):
    references = [{"tags": [0, 1, 2]}, {"tags": [1, 1]}, {"tags": [0]}]
    encoded = make_encoded("token", references, labels=("O", "B-x", "I-x"))
    gold, predicted = np.array([0, 1, 2, 1, 1, 0]), np.array([0, 1, 1, 1, 1, 2])
    assert value("accuracy", predicted, encoded) == pytest.approx(4 / 6)
    assert value("exact_match", predicted, encoded) == pytest.approx(1 / 3)
    assert value("f1_macro", predicted, encoded) == pytest.approx(
        sklearn_metrics.f1_score(gold, predicted, average="macro")
    )
    for name in ("accuracy", "f1_macro", "f1_span"):
        stats = METRICS[name].stats(predicted, encoded)
        assert len(stats) == 3
        np.testing.assert_array_equal(
            stats.sum(0), METRICS[name].sums(predicted[None], encoded)[0]
        )


def test_choice_is_scored_by_candidate(make_encoded):
    encoded = make_encoded("choice", [2, 0, 1], num_labels=4)
    assert value("exact_match", np.array([2, 1, 1]), encoded) == pytest.approx(2 / 3)


def test_defaults_fit_their_kind():
    for kind, names in DEFAULT_METRICS.items():
        check_metrics(kind, names)


@pytest.mark.parametrize(
    ("kind", "names", "words"),
    [
        ("single_label", ("f1_span",), r"toy: .*'f1_span'.*accuracy"),
        ("span", ("f1",), r"'f1'.*exact_match"),
        ("token", (), "no metric is named"),
        ("ranking", ("accuracy",), "the kind is unknown"),
    ],
)
def test_metrics_that_do_not_fit_are_named(kind, names, words):
    with pytest.raises(ValueError, match=words):
        check_metrics(kind, names, "toy")
