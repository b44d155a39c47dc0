import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import MERGES
from fusion_jax.peft.combine_updates import (
    concatenate,
    knots_updates,
    linear_factors,
    merged_updates,
    svd,
)
from fusion_jax.peft.factors import Factors

WEIGHTS = [0.8, 0.5, 0.3]


def parts(ranks=(2, 3, 4), rows=9, columns=7, seed=0):
    random = np.random.default_rng(seed)
    return [
        Factors(random.normal(size=(rows, r)), random.normal(size=(r, columns)))
        for r in ranks
    ]


def dense(update):
    return update.a @ update.b


def merge_of_matrices(name, updates, weights, **options):
    """The merge of the table on the updates in full."""
    stack = {"x": jnp.stack([jnp.asarray(dense(u), jnp.float32) for u in updates])}
    base = {"x": jnp.zeros_like(stack["x"][0])}
    weights = jnp.asarray(weights, jnp.float32)
    return MERGES[name].function(stack, weights, base=base, **options)["x"]


def test_svd_at_full_rank_is_the_concatenation():
    updates = parts()
    exact, _ = concatenate(updates, WEIGHTS)
    cut, lost = svd(updates, WEIGHTS, rank=9)
    assert lost < 1e-12
    np.testing.assert_allclose(dense(cut), dense(exact), atol=1e-12)


def test_svd_without_a_rank_keeps_the_largest_that_went_in():
    assert svd(parts(), WEIGHTS)[0].rank == 4
    assert svd(parts(), WEIGHTS, energy=1.0)[0].rank == 7


def test_linear_factors_is_pefts_rule_with_its_cross_terms():
    one, two = parts((3, 3))
    merged, _ = linear_factors([one, two], [0.7, -0.2])
    a = math.sqrt(0.7) * one.a - math.sqrt(0.2) * two.a
    b = math.sqrt(0.7) * one.b + math.sqrt(0.2) * two.b
    np.testing.assert_allclose(dense(merged), a @ b, atol=1e-13)
    with pytest.raises(ValueError, match=r"ranks 2, 3 .*concatenate or svd"):
        linear_factors(parts((2, 3)), [1, 1])


def test_a_difference_is_a_difference():
    one, two = parts((3, 3))
    difference = dense(one) - dense(two)
    exact, _ = concatenate([one, two], [1, -1])
    np.testing.assert_allclose(dense(exact), difference, atol=1e-13)
    # The rule by factors is off by as much as there is.
    wrong = dense(linear_factors([one, two], [1, -1])[0])
    error = np.linalg.norm(wrong - difference) / np.linalg.norm(difference)
    assert error > 0.5


@pytest.mark.parametrize("name", ["ties", "dare", "dare_ties"])
def test_merges_of_updates_are_those_of_the_table(name):
    key = {"key": jax.random.key(3)} if "key" in MERGES[name].needs else {}
    found, lost = merged_updates(name, parts(), WEIGHTS, rank=7, density=0.6, **key)
    fixed = {"trim_scope": "tensor"} if name == "ties" else {}
    # The leaf's name seeds the masks.
    stack = {"leaf": jnp.stack([jnp.asarray(dense(u), jnp.float32) for u in parts()])}
    expected = MERGES[name].function(
        stack,
        jnp.asarray(WEIGHTS),
        base={"leaf": jnp.zeros_like(stack["leaf"][0])},
        density=0.6,
        **fixed,
        **key,
    )["leaf"]
    assert lost < 1e-6
    np.testing.assert_allclose(dense(found), expected, atol=1e-5)


@pytest.mark.parametrize("inner", ["ties", "sum"])
@pytest.mark.parametrize("shape", [(9, 7), (6, 20)])
def test_knots_by_factors_is_knots_of_the_matrices(inner, shape):
    updates = parts(rows=shape[0], columns=shape[1])
    found, _ = knots_updates(updates, WEIGHTS, rank=9, density=0.4, inner=inner)
    expected = merge_of_matrices("knots", updates, WEIGHTS, density=0.4, inner=inner)
    np.testing.assert_allclose(dense(found), expected, atol=2e-5)


def test_knots_of_nothing_is_nothing():
    nothing = [Factors(np.zeros((4, 2)), np.zeros((2, 3)))] * 2
    assert not dense(knots_updates(nothing, [1, 1])[0]).any()
