"""Best epoch and early stopping."""

import json

import pytest

from fusion_jax.training.selection import Standing, observe


def walk(epochs, **options):
    options = {"select": "metric", "patience": 0} | options
    standing, kept = Standing(), []
    for epoch, (score, loss) in enumerate(epochs):
        standing, better = observe(standing, epoch, score, loss, **options)
        if better:
            kept.append(epoch)
    return standing, kept


def test_the_largest_metric_wins_and_ties_go_to_the_smaller_loss():
    standing, kept = walk([(0.5, 1.0), (0.7, 1.0), (0.7, 0.9), (0.7, 0.9), (0.6, 0.1)])
    assert kept == [0, 1, 2]
    assert standing.best_epoch == 2


def test_by_loss_the_metric_does_not_matter():
    assert walk([(0.9, 1.0), (0.1, 0.5), (0.9, 0.7)], select="loss")[1] == [0, 1]


@pytest.mark.parametrize("epochs", [[(0.9, 0.1), (0.1, 0.9)], [(None, None)] * 2])
def test_last_and_no_dev_set_keep_the_last_epoch(epochs):
    select = "last" if epochs[0][0] else "metric"
    standing, kept = walk(epochs, select=select, patience=1)
    assert kept == [0, 1]
    assert not standing.stopped


def test_an_expert_stops_after_its_patience_and_then_keeps_nothing():
    epochs = [(0.5, 1.0), (0.4, 1.0), (0.6, 1.0), (0.5, 1.0), (0.5, 1.0), (0.9, 1.0)]
    standing, kept = walk(epochs, patience=2)
    assert standing.stopped
    assert kept == [0, 2]


def test_a_score_that_is_no_number_cannot_become_the_best():
    nan = float("nan")
    assert walk([(0.1, 1.0), (nan, nan)])[1] == [0]
    assert walk([(0.5, nan), (0.5, 2.0)])[1] == [0, 1]


def test_a_record_survives_json():
    standing, _ = walk([(0.1 + 0.2, 1 / 3), (0.1, 2.0)], patience=3)
    assert Standing.from_json(json.loads(json.dumps(standing.to_json()))) == standing
