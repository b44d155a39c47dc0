"""Breadcrumbs keeps the middle, in exact numbers, of small leaves too."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.breadcrumbs import breadcrumbs, breadcrumbs_ties
from tests.merging.task_vectors import (
    assert_mapped_equals_a_loop,
    assert_trees_close,
    combined,
    deltas_of,
    experts_and_base,
)

STACK, BASE = experts_and_base()
ROW = jnp.asarray([0.2, 0.5, 0.3])


def middle(delta, density, gamma):
    """Entries of one expert's leaf that are kept, others 0."""
    flat = delta.reshape(-1)
    order = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i))
    top = int(np.floor(gamma * flat.size + 1e-9))
    number = int(np.floor(density * flat.size + 1e-9))
    out = np.zeros(flat.size)
    for i in order[top : top + number]:
        out[i] = flat[i]
    return out.reshape(delta.shape)


def alone(values, density, gamma):
    values = jnp.asarray(values, jnp.float32)
    merged = breadcrumbs(
        {"a": values[None]},
        jnp.ones(1),
        base={"a": jnp.zeros_like(values)},
        density=density,
        gamma=gamma,
    )
    return np.asarray(merged["a"])


@pytest.mark.parametrize(
    ("options", "merge"),
    [
        ({}, breadcrumbs),
        ({"density": 0.5, "gamma": 0.1, "scale": 0.7}, breadcrumbs_ties),
        ({"density": np.asarray([0.3, 0.6, 1.0]), "gamma": 0.2}, breadcrumbs),
        ({"density": 0.6, "gamma": 0.0, "elect": "weighted"}, breadcrumbs),
    ],
)
def test_the_merge_equals_a_float64_reference(options, merge):
    merged = merge(STACK, ROW, base=BASE, **options)
    ties = merge is breadcrumbs_ties
    density = np.broadcast_to(options.get("density", 0.9), 3)
    gamma = options.get("gamma", 0.01)
    expected = {}
    for name, deltas in deltas_of(STACK, BASE).items():
        d = np.stack([middle(x, density[k], gamma) for k, x in enumerate(deltas)])
        elect = options.get("elect", "unweighted" if ties else "none")
        row = np.asarray(ROW, np.float64)
        delta = combined(d, row, elect, "mean" if ties else "sum")
        expected[name] = np.asarray(BASE[name], np.float64)
        expected[name] = expected[name] + options.get("scale", 1.0) * delta
    assert_trees_close(merged, expected)


def test_small_tensors_are_not_zeroed():
    kept = alone([5.0, -4.0, 3.0, -2.0, 1.0], 0.8, 0.01)
    np.testing.assert_array_equal(kept, [5, -4, 3, -2, 0])
    kept = alone(np.arange(1, 51), 0.5, 0.01)
    np.testing.assert_array_equal(kept, np.where(np.arange(1, 51) > 25, kept, 0))
    assert np.count_nonzero(kept) == 25
    assert np.count_nonzero(alone(np.arange(1, 51), 0.5, 0.0)) == 25


def test_the_largest_are_dropped_and_counts_are_not_lost_to_rounding():
    values = np.arange(1, 101)
    kept = alone(values, 0.29, 0.07)
    np.testing.assert_array_equal(
        kept, np.where((values <= 93) & (values > 64), values, 0)
    )


def test_equal_entries_are_kept_in_the_exact_number():
    assert np.count_nonzero(alone(np.ones(40), 0.5, 0.1)) == 20
    assert np.count_nonzero(alone(np.ones(40), 1.0, 0.1)) == 36


def test_bfloat16_leaves_stay_bfloat16():
    half = {n: x.astype(jnp.bfloat16) for n, x in STACK.items()}
    anchor = {n: x.astype(jnp.bfloat16) for n, x in BASE.items()}
    merged = breadcrumbs(half, ROW, base=anchor, density=0.5)
    wide = {n: x.astype(jnp.float32) for n, x in half.items()}
    floor = {n: x.astype(jnp.float32) for n, x in anchor.items()}
    exact = breadcrumbs(wide, ROW, base=floor, density=0.5)
    for name in merged:
        assert merged[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(merged[name], exact[name].astype(jnp.bfloat16))


@pytest.mark.parametrize("option", ["coefficients", "density", "gamma"])
def test_jit_of_vmap_over_each_number_equals_a_loop(option):
    if option == "coefficients":
        values = jnp.asarray([[0.1, 0.2, 0.7], [1.0, 0.5, 0.5]])
        merge = lambda c: breadcrumbs_ties(STACK, c, base=BASE)  # noqa: E731
    else:
        values = jnp.asarray([0.0, 0.29, 1.0])
        merge = lambda x: breadcrumbs(STACK, ROW, base=BASE, **{option: x})  # noqa: E731
    assert_mapped_equals_a_loop(merge, values)


@settings(max_examples=20)
@given(
    density=st.floats(0, 1),
    gamma=st.floats(0, 1),
    size=st.sampled_from([1, 7]),
    seed=st.integers(0, 2**16),
)
def test_what_is_kept_lies_between_the_dropped(density, gamma, size, seed):
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    kept = alone(values, density, gamma)
    np.testing.assert_array_equal(kept, middle(values, density, gamma))


def test_a_missing_base_is_named():
    with pytest.raises(ValueError, match="breadcrumbs: needs base"):
        breadcrumbs(STACK, ROW)
    with pytest.raises(ValueError, match="breadcrumbs_ties: needs base"):
        breadcrumbs_ties(STACK, ROW)
