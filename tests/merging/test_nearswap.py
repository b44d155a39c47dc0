"""NearSwap takes near entries over exactly and moves the others by t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.nearswap import nearswap
from tests.merging.task_vectors import (
    assert_mapped_equals_a_loop,
    assert_trees_close,
    deltas_of,
    experts_and_base,
)

STACK, BASE = experts_and_base(num_experts=1)
ROW = jnp.ones(1)


@pytest.mark.parametrize("t", [1e-4, 0.05, 10.0])
def test_the_merge_equals_a_float64_reference(t):
    expected = {}
    for name, deltas in deltas_of(STACK, BASE).items():
        base = np.asarray(BASE[name], np.float64)
        weight = np.clip(t / np.maximum(np.abs(deltas[0]), 1e-6), 0, 1)
        expected[name] = weight * (base + deltas[0]) + (1 - weight) * base
    assert_trees_close(nearswap(STACK, ROW, base=BASE, t=t), expected)


def test_near_entries_are_copied_bit_for_bit_and_t_zero_is_the_base():
    merged = nearswap(STACK, ROW, base=BASE, t=10.0)
    assert_trees_close(merged, {n: x[0] for n, x in STACK.items()}, rtol=0, atol=0)
    for t in (0.0, -1.0):
        assert_trees_close(nearswap(STACK, ROW, base=BASE, t=t), BASE, rtol=0, atol=0)


def test_bfloat16_leaves_stay_bfloat16():
    half = {n: x.astype(jnp.bfloat16) for n, x in STACK.items()}
    anchor = {n: x.astype(jnp.bfloat16) for n, x in BASE.items()}
    merged = nearswap(half, ROW, base=anchor, t=10.0)
    assert all(x.dtype == jnp.bfloat16 for x in merged.values())
    assert_trees_close(merged, {n: x[0] for n, x in half.items()}, rtol=0, atol=0)


def test_jit_of_vmap_over_t_equals_a_loop():
    assert_mapped_equals_a_loop(
        lambda t: nearswap(STACK, ROW, base=BASE, t=t), jnp.asarray([0.0, 0.05, 1.0])
    )


def test_gradients_are_finite_on_zero_and_tiny_leaves():
    for size in (0.0, 1e-30, 1.0):
        gradient = jax.grad(
            lambda s: jnp.sum(nearswap(s, ROW, base={"a": jnp.zeros((6, 5))})["a"])
        )({"a": size * STACK["matrix"]})
        assert np.isfinite(gradient["a"]).all()


def test_more_than_one_expert_and_a_missing_base_are_refused():
    two = {n: jnp.concatenate([x, x]) for n, x in STACK.items()}
    with pytest.raises(ValueError, match="nearswap: 2 experts given, takes one"):
        nearswap(two, jnp.ones(2), base=BASE)
    with pytest.raises(ValueError, match="nearswap: needs base"):
        nearswap(STACK, ROW)


@settings(max_examples=20)
@given(t=st.floats(0, 3), size=st.sampled_from([1, 5]), seed=st.integers(0, 2**16))
def test_no_entry_moves_further_than_t_or_past_the_other_model(t, size, seed):
    delta = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    merged = nearswap(
        {"a": jnp.asarray(delta)[None]}, ROW, base={"a": jnp.zeros(size)}, t=t
    )["a"]
    np.testing.assert_allclose(
        merged, np.sign(delta) * np.minimum(np.abs(delta), t), rtol=1e-6, atol=1e-30
    )
