"""Which layers are taken, and that a mean of products is one."""

import numpy as np
import pytest

from fusion_jax.peft.port_depth import layers_taken, mean_product


@pytest.mark.parametrize(
    "source, target, depth, wanted",
    [
        (6, 3, "skip", [(0,), (2,), (4,)]),
        (6, 6, "skip", [(n,) for n in range(6)]),
        (6, 3, "average", [(0, 1), (2, 3), (4, 5)]),
        # floor((j + 1/2) 6 / 4)
        (6, 4, "skip", [(0,), (2,), (3,), (5,)]),
        (3, 6, "skip", [(0,), (0,), (1,), (1,), (2,), (2,)]),
        (3, 6, "average", [(0,), (0,), (1,), (1,), (2,), (2,)]),
        (12, 5, "average", [(0, 1), (2, 3), (4, 5, 6), (7, 8), (9, 10, 11)]),
    ],
)
def test_layers_that_are_taken(source, target, depth, wanted):
    assert layers_taken(source, target, depth) == wanted


@pytest.mark.parametrize("source", range(1, 13))
@pytest.mark.parametrize("target", range(1, 13))
def test_layers_keep_their_order_and_groups_lose_none(source, target):
    skipped = layers_taken(source, target, "skip")
    averaged = layers_taken(source, target, "average")
    assert len(skipped) == len(averaged) == target
    assert skipped == sorted(skipped)
    if source >= target:
        assert [n for group in averaged for n in group] == list(range(source))


def test_an_unknown_rule_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="'all' is not one of skip, average"):
        layers_taken(6, 3, "all")


def test_a_mean_of_products_is_the_best_of_its_rank():
    generator = np.random.default_rng(0)
    lefts = [generator.normal(size=(4, 9, r)) for r in (2, 3)]
    rights = [generator.normal(size=(4, r, 7)) for r in (2, 3)]
    weights = (0.3, -1.2)
    whole = sum(w * a @ b for w, a, b in zip(weights, lefts, rights, strict=True))
    exact = mean_product(lefts, rights, weights, 6)
    np.testing.assert_allclose(exact[0] @ exact[1], whole, atol=1e-12)
    assert exact[0].shape == (4, 9, 6)
    left, right = mean_product(lefts, rights, weights, 2)
    u, s, v = np.linalg.svd(whole)
    wanted = (u[..., :2] * s[:, None, :2]) @ v[:, :2]
    np.testing.assert_allclose(left @ right, wanted, atol=1e-12)
    # Singular values are split evenly.
    np.testing.assert_allclose(
        np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=2), atol=1e-12
    )


def test_equal_factors_come_back_as_they_are():
    generator = np.random.default_rng(1)
    left, right = generator.normal(size=(9, 2)), generator.normal(size=(2, 7))
    found = mean_product([left] * 4, [right] * 4, [0.25] * 4, 2)
    np.testing.assert_array_equal(found[0], left)
    np.testing.assert_array_equal(found[1], right)
