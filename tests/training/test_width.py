"""How many experts train together."""

import jax
import numpy as np
import pytest

from fusion_jax.data.batches import TrainBatches
from fusion_jax.training.config import FROZEN_EMBEDDINGS, FitConfig
from fusion_jax.training.sharding import default_mesh, make_mesh
from fusion_jax.training.width import choose_width, estimate_bytes, fitting_width
from fusion_jax.trees import num_bytes, partition


def never():
    raise AssertionError("not asked for on a CPU")


def test_on_a_cpu_experts_train_one_after_another():
    assert choose_width(7, never, 0, default_mesh()) == 1
    assert choose_width(1, never, 0, default_mesh()) == 1


@pytest.mark.skipif(len(jax.devices()) < 4, reason="needs 4 devices")
def test_an_expert_axis_is_filled():
    assert choose_width(4, never, 0, make_mesh(expert=2)) == 2
    with pytest.raises(ValueError, match="4 experts cannot be spread evenly"):
        choose_width(4, never, 0, make_mesh(expert=3))


@pytest.mark.parametrize(
    ("experts", "room", "ways", "expected"),
    [(8, 100, 1, 8), (8, 5, 1, 4), (7, 6, 1, 1), (8, 0, 1, 1), (8, 3, 2, 4)],
)
def test_the_largest_equal_groups_that_fit(experts, room, ways, expected):
    assert fitting_width(experts, room, ways) == expected


def test_the_estimate_grows_with_the_batch_and_shrinks_with_slices(
    model, params, splits
):
    fixed, trained = partition(params, FROZEN_EMBEDDINGS)

    def estimate(rows, **options):
        config = FitConfig(batch_size=rows, **options)
        batch = TrainBatches(splits(64, 1), rows, seed=0, buckets=(16,)).batch(0)
        return estimate_bytes(model, trained, fixed, batch, config)

    least = 5 * num_bytes(trained)
    assert least < estimate(8) < estimate(64)
    assert estimate(64, accumulate=8) == pytest.approx(estimate(8), rel=0.1)
    assert estimate(8, average="swa") - estimate(8) == num_bytes(trained)
    assert isinstance(estimate(8), int | np.integer)
