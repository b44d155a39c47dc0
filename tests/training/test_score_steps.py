"""A stack scored on the way: alone or together, to the end or as a part of more."""

import dataclasses

import jax
import numpy as np
import pytest

from fusion_jax.data.batches import TrainBatches
from fusion_jax.training.config import FitConfig
from fusion_jax.training.evaluate import DevSets
from fusion_jax.training.score_steps import score_at_steps
from fusion_jax.training.sharding import make_mesh
from fusion_jax.trees import flatten, partition, stack

CONFIG = FitConfig(
    batch_size=8,
    learning_rate=0.05,
    schedule="constant",
    warmup_fraction=0.0,
    buckets=(8, 16),
    frozen=(),
)
NAMES = ("a", "b", "c")


@pytest.fixture
def given(model, params, splits):
    """Three heads over one encoder, and what they are trained and scored on."""
    shared, head = partition(params, r"encoder/.*")
    heads = [jax.tree.map(lambda x, s=s: x * s, head) for s in (1.0, -1.0, 0.2)]
    train, test = splits(48, 1), splits(40, 2)

    def run(members, steps, config=CONFIG):
        mesh = make_mesh(devices=jax.local_devices()[:1])
        names = [NAMES[k] for k in members]
        sets = DevSets(
            model,
            "single_label",
            [test] * len(members),
            metrics=("accuracy",),
            num_labels=None,
            buckets=(8, 16),
            mesh=mesh,
        )
        batches = TrainBatches(train, 8, seed=0, buckets=(8, 16))
        return score_at_steps(
            model,
            stack([heads[k] for k in members], names),
            shared,
            batches,
            sets,
            config,
            steps,
            kind="single_label",
            names=names,
            mesh=mesh,
        )

    return run, shared, heads


def test_together_is_as_alone(given):
    run, _, _ = given
    whole = run((0, 1, 2), (0, 5))
    for k in range(3):
        alone = run((k,), (0, 5))
        for step in (0, 5):
            one, other = whole.scores[step][k], alone.scores[step][0]
            assert one.mean == other.mean
            assert one.loss == pytest.approx(other.loss, rel=1e-5)
        for name, leaf in flatten(alone.params).items():
            np.testing.assert_allclose(
                flatten(whole.params)[name][k], leaf[0], atol=1e-5
            )


def test_steps_on_the_way_are_those_of_a_shorter_training(given):
    run, _, _ = given
    # More steps than an epoch has batches.
    long, short = run((0, 1), (0, 3, 11)), run((0, 1), (3,))
    assert list(long.scores) == [0, 3, 11]
    for one, other in zip(long.scores[3], short.scores[3], strict=True):
        assert (one.mean, one.loss) == (other.mean, other.loss)
    assert long.scores[11][0].loss < long.scores[0][0].loss


def test_what_is_frozen_stays_and_arguments_are_left_alone(given):
    run, shared, heads = given
    before = jax.tree.map(np.array, (shared, heads))
    run((0, 1, 2), (2,))
    jax.tree.map(np.testing.assert_array_equal, before, (shared, heads))


def test_one_that_diverges_is_told_and_hurts_no_other(given):
    run, _, heads = given
    sound = run((0, 1), (4,))
    heads[2]["head"]["classifier"]["bias"] = np.full(3, np.nan, np.float32)
    found = run((0, 1, 2), (4,))
    assert found.diverged == [None, None, 0]
    for k in range(2):
        assert found.scores[4][k].mean == sound.scores[4][k].mean


def test_a_rate_that_changes_is_refused(given):
    run, _, _ = given
    config = dataclasses.replace(CONFIG, schedule="linear")
    with pytest.raises(ValueError, match="set 'constant' and 0"):
        run((0,), (2,), config)
