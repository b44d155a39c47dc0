"""Controls keep what they say of the ported module, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft.controls import CONTROLS


@pytest.fixture(scope="module")
def leaves():
    key = jax.random.split(jax.random.key(0), 3)
    return {
        "one": {"a": 3 + 2 * jax.random.normal(key[0], (200, 100))},
        "two": {"b": jax.random.exponential(key[1], (300, 50))},
        "three": {"scale": jnp.full((40,), 7.0)},
        "four": {"c": jax.random.normal(key[2], (100,)).astype(jnp.bfloat16)},
    }


@pytest.mark.parametrize("name", CONTROLS)
def test_shapes_and_dtypes_are_kept_and_a_key_gives_one_draw(name, leaves):
    once, again, other = (
        CONTROLS[name](leaves, jax.random.key(seed)) for seed in (1, 1, 2)
    )
    assert trees.mismatches([leaves, once]) == []
    for leaf in ("one/a", "two/b"):
        a, b, c = (trees.flatten(tree)[leaf] for tree in (once, again, other))
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_the_gaussian_has_the_moments_of_each_tensor(leaves):
    drawn = trees.flatten(CONTROLS["gaussian"](leaves, jax.random.key(1)))
    for name, leaf in trees.flatten(leaves).items():
        size = leaf.size
        values, wanted = (np.asarray(x, np.float64) for x in (drawn[name], leaf))
        error = wanted.std() / np.sqrt(size)
        assert abs(values.mean() - wanted.mean()) <= 5 * error
        # The deviation of a sample of a Gaussian varies by s / sqrt(2 n).
        assert abs(values.std() - wanted.std()) <= 5 * error / np.sqrt(2) + 1e-12
    # The skew of what it was made from is gone.
    values = np.asarray(drawn["two/b"], np.float64)
    skew = np.mean(((values - values.mean()) / values.std()) ** 3)
    assert abs(skew) < 0.1
    np.testing.assert_array_equal(drawn["three/scale"], 7.0)


def test_a_permutation_keeps_the_entries_and_moves_them(leaves):
    drawn = trees.flatten(CONTROLS["permuted"](leaves, jax.random.key(1)))
    for name, leaf in trees.flatten(leaves).items():
        np.testing.assert_array_equal(
            np.sort(np.asarray(drawn[name]), axis=None), np.sort(leaf, axis=None)
        )
    moved = np.asarray(drawn["one/a"]) != np.asarray(leaves["one"]["a"])
    assert moved.mean() > 0.99
    correlation = np.corrcoef(drawn["one/a"].ravel(), leaves["one"]["a"].ravel())
    assert abs(correlation[0, 1]) < 0.05


def test_the_gaussian_of_a_module_is_one_for_all_tensors(leaves):
    drawn = trees.flatten(CONTROLS["gaussian_module"](leaves, jax.random.key(1)))
    entries = np.concatenate(
        [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(leaves)]
    )
    for name in ("one/a", "two/b"):
        values = np.asarray(drawn[name], np.float64)
        error = entries.std() / np.sqrt(values.size)
        assert abs(values.mean() - entries.mean()) < 5 * error
        assert abs(values.std() - entries.std()) < 5 * error
    assert np.std(np.asarray(drawn["three/scale"])) > 0


def test_a_leaf_does_not_depend_on_the_others(leaves):
    alone = {"one": leaves["one"]}
    key = jax.random.key(3)
    for name in ("gaussian", "permuted"):
        np.testing.assert_array_equal(
            CONTROLS[name](alone, key)["one"]["a"],
            CONTROLS[name](leaves, key)["one"]["a"],
        )
