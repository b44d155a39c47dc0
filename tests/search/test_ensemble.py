"""The logit ensemble: the mean of the experts' logits, row by row."""

import functools

import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.evaluation.readout import readout
from fusion_jax.search.ensemble import label_ensemble, logit_ensemble
from fusion_jax.search.points import make_points

READ = functools.partial(readout, "single_label")


@pytest.fixture(scope="module")
def expected(linear_logits):
    """[K, N, C] logits of every expert in float64."""
    return np.stack([linear_logits(row) for row in np.eye(3)])


def test_it_is_the_mean_of_the_logits_in_row_order(
    linear_model, linear_points, linear_batches, expected
):
    found = logit_ensemble(linear_model, READ, linear_points, linear_batches)
    np.testing.assert_allclose(found["logits"], expected.mean(axis=0), atol=1e-5)


def test_its_loss_is_that_of_the_mean_logits(
    linear_model, linear_points, linear_batches, linear_rows, expected
):
    found = logit_ensemble(linear_model, READ, linear_points, linear_batches)
    logits = expected.mean(axis=0)
    chosen = logits[np.arange(len(logits)), linear_rows[1]]
    loss = np.log(np.exp(logits).sum(axis=1)) - chosen
    np.testing.assert_allclose(found["loss"], loss, atol=1e-5)


def test_an_ensemble_of_one_is_the_model_and_shared_leaves_are_read(
    linear_model, linear_points, linear_batches, expected
):
    params = trees.unstack(linear_points.stack)[1]
    for shared in ([], ["head/.*"]):
        alone = make_points({"alone": params}, shared=shared)
        found = logit_ensemble(linear_model, READ, alone, linear_batches)
        np.testing.assert_allclose(found["logits"], expected[1], atol=1e-5)


def test_a_label_is_averaged_over_those_that_know_it(
    linear_model, linear_points, linear_batches, expected
):
    owners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], bool)[:, : expected.shape[2]]
    # Of the last label nobody has a row: it is the mean over all.
    share = np.where(owners.any(axis=0), owners, True)
    wanted = (expected * share[:, None]).sum(0) / share.sum(0)[None]
    for batch in linear_batches:
        found = label_ensemble(linear_model, (linear_points.stack, owners), batch)
        rows = np.asarray(batch["index"])
        real = rows >= 0
        logits = np.asarray(found["logits"])[real]
        np.testing.assert_allclose(logits, wanted[rows[real]], atol=1e-5)
