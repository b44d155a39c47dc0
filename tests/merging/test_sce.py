"""SCE weighs by mean squares, free of scale, and keeps the shape of frozen leaves."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.sce import sce
from tests.merging.task_vectors import (
    assert_mapped_equals_a_loop,
    assert_trees_close,
    combined,
    deltas_of,
    experts_and_base,
)

STACK, BASE = experts_and_base()
ROW = jnp.asarray([0.2, 0.5, 0.3])


def reference(deltas, topk):
    """The merged task vector of one leaf."""
    flat = deltas.reshape(len(deltas), -1).copy()
    if topk < 1:
        variance = [np.mean((x - x.mean()) ** 2) for x in flat.T]
        # Experts that agree exactly differ by rounding of the mean alone.
        varying = [i for i, x in enumerate(flat.T) if len(set(x)) > 1]
        number = int(np.floor(topk * len(varying) + 1e-9))
        chosen = sorted(varying, key=lambda i: -variance[i])[:number]
        for i in range(flat.shape[1]):
            if i not in chosen:
                flat[:, i] = 0
    squares = np.asarray([np.mean(x**2) for x in flat])
    weights = squares / squares.sum() if squares.sum() else squares
    return combined(flat, weights, "unweighted", "mean").reshape(deltas.shape[1:])


def of_deltas(deltas, **options):
    stack = {"a": jnp.asarray(deltas, jnp.float32)}
    base = {"a": jnp.zeros_like(stack["a"][0])}
    return np.asarray(sce(stack, jnp.ones(len(deltas)), base=base, **options)["a"])


@pytest.mark.parametrize(
    "options", [{}, {"select_topk": 0.5}, {"select_topk": 0.29, "scale": 0.6}]
)
def test_the_merge_equals_a_float64_reference(options):
    merged = sce(STACK, ROW, base=BASE, **options)
    expected = {
        n: np.asarray(BASE[n], np.float64)
        + options.get("scale", 1.0) * reference(d, options.get("select_topk", 1.0))
        for n, d in deltas_of(STACK, BASE).items()
    }
    assert_trees_close(merged, expected)


@pytest.mark.parametrize("topk", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_a_frozen_leaf_is_the_base_in_its_own_shape(topk, shape):
    base = {"a": jnp.full(shape, 0.7)}
    stack = {"a": jnp.stack([base["a"]] * 3)}
    merged = sce(stack, ROW, base=base, select_topk=topk)["a"]
    assert merged.shape == shape
    np.testing.assert_array_equal(merged, base["a"])


def test_scaling_the_deltas_scales_the_result():
    # Weights .9 and .1 at any size; an absolute threshold makes them uniform.
    for size in (1.0, 1e-4, 1e-12, 1e-25):
        merged = of_deltas([[3 * size] * 2, [size] * 2])
        np.testing.assert_allclose(merged, [2.8 * size] * 2, rtol=1e-6)
        selected = of_deltas([[3 * size, size, 0], [size, -size, 0]], select_topk=0.5)
        np.testing.assert_allclose(selected, [2.8 * size, 0, 0], rtol=1e-6)


def test_the_share_is_of_the_entries_that_differ():
    # 4 of 8 differ; half of these are the two with the largest variance.
    one = [4.0, 3.0, 2.0, 1.0, 5.0, 5.0, 5.0, 5.0]
    two = [0.0, 0.0, 0.0, 0.0, 5.0, 5.0, 5.0, 5.0]
    merged = of_deltas([one, two], select_topk=0.5)
    np.testing.assert_allclose(merged, [4, 3, 0, 0, 0, 0, 0, 0])


def test_select_topk_zero_is_the_base_and_one_selects_equal_entries_too():
    assert not of_deltas([[1.0, 2.0], [3.0, 4.0]], select_topk=0.0).any()
    np.testing.assert_allclose(of_deltas([[1.0, 2.0]] * 3), [1, 2], rtol=1e-6)


def test_coefficients_do_not_count_but_their_shape_is_checked():
    one, two = (sce(STACK, c, base=BASE) for c in (ROW, jnp.asarray([5.0, 0, -1])))
    assert_trees_close(one, two, rtol=0, atol=0)
    with pytest.raises(ValueError, match="the stack holds"):
        sce(STACK, jnp.ones(2), base=BASE)
    with pytest.raises(ValueError, match="sce: needs base"):
        sce(STACK, ROW)


def test_bfloat16_leaves_stay_bfloat16():
    half = {n: x.astype(jnp.bfloat16) for n, x in STACK.items()}
    anchor = {n: x.astype(jnp.bfloat16) for n, x in BASE.items()}
    merged = sce(half, ROW, base=anchor)
    expected = {
        n: np.asarray(anchor[n], np.float64) + reference(d, 1.0)
        for n, d in deltas_of(half, anchor).items()
    }
    assert all(x.dtype == jnp.bfloat16 for x in merged.values())
    assert_trees_close(merged, expected, rtol=2**-8)


@pytest.mark.parametrize("option", ["select_topk", "scale"])
def test_jit_of_vmap_over_each_number_equals_a_loop(option):
    merge = lambda x: sce(STACK, ROW, base=BASE, **{option: x})  # noqa: E731
    assert_mapped_equals_a_loop(merge, jnp.asarray([0.0, 0.29, 0.5, 1.0]))


@settings(max_examples=20)
@given(
    shape=st.sampled_from([(2, 1), (3, 5)]),
    power=st.integers(-60, 20),
    seed=st.integers(0, 2**16),
)
def test_a_power_of_two_of_the_deltas_is_that_power_of_the_result(shape, power, seed):
    deltas = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    one = of_deltas(deltas, select_topk=0.6)
    two = of_deltas(deltas * np.float32(2.0**power), select_topk=0.6)
    np.testing.assert_allclose(two, one * np.float32(2.0**power), rtol=1e-5)
