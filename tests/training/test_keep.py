"""Averages along training, and the best of each expert."""

import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.training.config import FitConfig
from fusion_jax.training.keep import keep_better, start_keeping, take_average
from fusion_jax.training.sharding import default_mesh

MESH = default_mesh()


def points(count):
    generator = np.random.Generator(np.random.PCG64(1))
    return [{"w": jnp.asarray(generator.normal(size=(2, 3)), jnp.float32)} for _ in
            range(count)]  # fmt: skip


def averages(config, path):
    kept, found = start_keeping(config, path[0], MESH), []
    for params in path:
        kept, average = take_average(config, kept, params)
        found.append(np.asarray(average["w"]))
    return found


def test_swa_is_the_mean_of_the_epochs_so_far():
    path = points(4)
    found = averages(FitConfig(average="swa"), path)
    for n, average in enumerate(found, start=1):
        expected = np.mean([np.asarray(p["w"], np.float64) for p in path[:n]], axis=0)
        np.testing.assert_allclose(average, expected, rtol=1e-6, atol=1e-7)


def test_ema_starts_at_the_first_epoch_and_forgets_by_its_decay():
    path = points(3)
    found = averages(FitConfig(average="ema", average_decay=0.75), path)
    expected = np.asarray(path[0]["w"], np.float64)
    np.testing.assert_array_equal(found[0], path[0]["w"])
    for average, params in zip(found[1:], path[1:], strict=True):
        expected = 0.75 * expected + 0.25 * np.asarray(params["w"], np.float64)
        np.testing.assert_allclose(average, expected, rtol=1e-6, atol=1e-7)


def test_without_averaging_the_parameters_are_scored_and_no_copy_is_held():
    (params,) = points(1)
    kept = start_keeping(FitConfig(), params, MESH)
    kept, candidate = take_average(FitConfig(), kept, params)
    assert candidate is params
    assert kept.keys() == {"best"}


@pytest.mark.parametrize("better", [(True, False), (False, True), (False, False)])
def test_only_the_experts_at_their_best_are_replaced(better):
    first, second = points(2)
    kept = start_keeping(FitConfig(), first, MESH)
    kept = keep_better(kept, second, jnp.array(better))
    for k, replaced in enumerate(better):
        expected = second if replaced else first
        np.testing.assert_array_equal(kept["best"]["w"][k], expected["w"][k])
