"""Batches on their way to the device."""

import numpy as np
import pytest

from fusion_jax.data.batches import TrainBatches
from fusion_jax.training.feed import Feed, count_tokens
from fusion_jax.training.sharding import default_mesh


@pytest.fixture
def sources(splits):
    return [
        TrainBatches(splits(rows, seed), 4, seed=seed, buckets=(8, 16))
        for rows, seed in ((20, 1), (9, 2))
    ]


def test_a_shorter_expert_pauses_until_the_epoch_ends(sources):
    feed = Feed(sources, default_mesh())
    assert feed.steps.tolist() == [5, 3]
    assert feed.rounds == 5
    assert feed.at(1, 2).active is None
    late = feed.at(1, 3)
    assert np.asarray(late.active).tolist() == [True, False]
    assert late.tokens[1] == 0


def test_each_expert_gets_the_batches_that_it_would_get_alone(sources):
    feed = Feed(sources, default_mesh())
    for epoch in range(2):
        for inner in range(3):
            fed = feed.at(epoch, inner)
            for k, source in enumerate(sources):
                alone = source.batch(epoch * source.steps_per_epoch + inner)
                length = alone["input_ids"].shape[1]
                ours = np.asarray(fed.batch["input_ids"])[k, :, :length]
                np.testing.assert_array_equal(ours, alone["input_ids"])
                assert fed.tokens[k] == count_tokens(alone)


def test_one_source_for_all_is_fed_once(sources):
    feed = Feed([sources[0]] * 3, default_mesh())
    assert feed.one_batch
    fed = feed.at(0, 0)
    assert fed.batch["input_ids"].ndim == 2
    assert fed.tokens.tolist() == [count_tokens(sources[0].batch(0))] * 3


def test_padding_rows_are_no_tokens():
    batch = {"attention_mask": np.ones((3, 4)), "mask": np.array([1.0, 0.0, 1.0])}
    assert count_tokens(batch) == 8
    assert count_tokens({"mask": batch["mask"]}) == 2
