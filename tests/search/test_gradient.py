"""Weights by gradient: held against Adam on finite differences in float64."""

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.search.gradient import gradient_weights
from fusion_jax.search.points import make_points


@pytest.fixture(scope="module")
def learned(linear_model, linear_points, linear_batches):
    return gradient_weights(
        linear_model, "single_label", linear_points, linear_batches, steps=12
    )


@pytest.fixture(scope="module")
def loss(linear_logits, linear_rows):
    """Mean cross-entropy of the merge by softmax(z), in float64."""

    def value(z):
        logits = linear_logits(np.exp(z) / np.exp(z).sum())
        chosen = logits[np.arange(len(logits)), linear_rows[1]]
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen)

    return value


def adam_by_differences(loss, count, steps, rate=0.1):
    """(z before each step, its loss)."""
    z, first, second = np.zeros(count), np.zeros(count), np.zeros(count)
    walk, losses = [], []
    for step in range(1, steps + 1):
        walk.append(z.copy())
        losses.append(loss(z))
        nudges = 1e-5 * np.eye(count)
        gradient = [(loss(z + n) - loss(z - n)) / 2e-5 for n in nudges]
        first = 0.9 * first + 0.1 * np.array(gradient)
        second = 0.999 * second + 0.001 * np.array(gradient) ** 2
        scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        z = z - rate * first / (1 - 0.9**step) / scale
    return walk, losses


def test_every_loss_is_that_of_adam_on_finite_differences(learned, loss):
    walk, losses = adam_by_differences(loss, 3, 12)
    np.testing.assert_allclose(learned.losses, losses, rtol=2e-5)
    best = walk[int(np.argmin(losses))]
    weights = np.exp(best) / np.exp(best).sum()
    np.testing.assert_allclose(learned.coefficients, weights, atol=1e-4)


def test_the_loss_falls_and_the_weights_lie_on_the_simplex(learned):
    assert learned.losses[-1] < learned.losses[0]
    assert (learned.coefficients > 0).all()
    assert learned.coefficients.sum() == pytest.approx(1, abs=1e-6)


def test_the_weights_are_those_of_the_smallest_loss(
    linear_model, linear_points, linear_batches, loss
):
    # So large a rate jumps to and fro.
    wild = gradient_weights(
        linear_model,
        "single_label",
        linear_points,
        linear_batches,
        steps=8,
        learning_rate=3.0,
    )
    assert wild.losses[-1] > min(wild.losses)
    assert loss(np.log(wild.coefficients)) == pytest.approx(min(wild.losses), rel=1e-4)


def test_what_is_shared_stays_and_groups_get_one_weight(
    linear_model, linear_points, linear_batches
):
    shared = linear_model.init(jax.random.key(9))
    experts = {
        name: trees.combine({"encoder": shared["encoder"]}, {"head": one["head"]})
        for name, one in zip(
            linear_points.names, trees.unstack(linear_points.stack), strict=True
        )
    }
    found = [
        gradient_weights(
            linear_model,
            "single_label",
            make_points(experts, shared=hold, groups=groups),
            linear_batches,
            steps=4,
        )
        for hold, groups in (
            ([], [(".*", 0)]),
            (["encoder/.*"], [(".*", 0)]),
            ([], [("head/.*", 1), (".*", 0)]),
        )
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.losses, found[0].losses, rtol=1e-5)
        np.testing.assert_allclose(other.coefficients, found[0].coefficients, atol=1e-5)


def test_leaves_that_are_counters_have_no_part_in_it(
    learned, linear_model, linear_points, linear_batches
):
    steps = np.arange(3, dtype=np.int32)[:, None]
    counted = linear_points._replace(stack={**linear_points.stack, "steps": steps})
    found = gradient_weights(
        linear_model, "single_label", counted, linear_batches, steps=12
    )
    np.testing.assert_array_equal(found.coefficients, learned.coefficients)
