"""RAM averages over those who changed an entry; RAM+ strengthens what one alone did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.ram import ram, ram_plus
from tests.merging.task_vectors import (
    assert_mapped_equals_a_loop,
    assert_trees_close,
    deltas_of,
    experts_and_base,
)

STACK, BASE = experts_and_base()
ROW = jnp.asarray([0.2, 0.5, 0.3])


def reference(deltas, epsilon, boost=0.0, limit=0.2):
    """The merged task vector of one leaf; boost 0 is plain RAM."""
    flat = deltas.reshape(len(deltas), -1)
    who = [[k for k, d in enumerate(x) if abs(d) > epsilon] for x in flat.T]
    factors = []
    for k in range(len(flat)):
        shared = sum(k in w and len(w) > 1 for w in who)
        unique = sum(w == [k] for w in who)
        ratio = shared / unique if unique else 0.0
        factors.append(1 + boost * min(ratio, limit))
    out = np.zeros(flat.shape[1])
    for i, w in enumerate(who):
        if len(w) == 1:
            out[i] = factors[w[0]] * flat[w[0], i]
        elif w:
            out[i] = sum(flat[k, i] for k in w) / len(w)
    return out.reshape(deltas.shape[1:])


@pytest.mark.parametrize("epsilon", [1e-5, 0.08, 0.15])
def test_both_equal_a_float64_reference(epsilon):
    plain = ram(STACK, ROW, base=BASE, epsilon=epsilon)
    options = {"epsilon": epsilon, "boost": 0.5, "limit": 0.7}
    plus = ram_plus(STACK, ROW, base=BASE, **options)
    deltas, wide = deltas_of(STACK, BASE), {}
    for name in BASE:
        wide[name] = np.asarray(BASE[name], np.float64)
    assert_trees_close(
        plain, {n: wide[n] + reference(d, epsilon) for n, d in deltas.items()}
    )
    assert_trees_close(
        plus, {n: wide[n] + reference(d, epsilon, 0.5, 0.7) for n, d in deltas.items()}
    )


def test_an_entry_is_divided_by_the_number_of_experts_that_changed_it():
    stack = {"a": jnp.asarray([[2.0, 2.0, 0.0, 9e-6], [4.0, 0.0, 0.0, 0.0]])}
    base = {"a": jnp.zeros(4)}
    merged = ram(stack, jnp.ones(2), base=base)["a"]
    np.testing.assert_array_equal(merged, [3, 2, 0, 0])
    # The first expert: one shared, one unique: ratio 1, clipped to .2, times .1.
    merged = ram_plus(stack, jnp.ones(2), base=base)["a"]
    np.testing.assert_allclose(merged, [3, 2 * 1.02, 0, 0], rtol=1e-6)


def test_dense_task_vectors_are_averaged():
    stack = {"a": STACK["matrix"]}
    expected = np.asarray(STACK["matrix"], np.float64).mean(0)
    for merge in (ram, ram_plus):
        merged = merge(stack, ROW, base={"a": BASE["matrix"]})["a"]
        np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)


def test_coefficients_do_not_count_and_a_missing_base_is_named():
    for name, merge in (("ram", ram), ("ram_plus", ram_plus)):
        one = merge(STACK, ROW, base=BASE)
        assert_trees_close(one, merge(STACK, 0 * ROW, base=BASE), rtol=0, atol=0)
        with pytest.raises(ValueError, match=f"{name}: needs base"):
            merge(STACK, ROW)


def test_bfloat16_leaves_stay_bfloat16():
    half = {n: x.astype(jnp.bfloat16) for n, x in STACK.items()}
    anchor = {n: x.astype(jnp.bfloat16) for n, x in BASE.items()}
    merged = ram_plus(half, ROW, base=anchor)
    assert all(x.dtype == jnp.bfloat16 for x in merged.values())
    expected = {
        n: np.asarray(anchor[n], np.float64) + reference(d, 1e-5, 0.1)
        for n, d in deltas_of(half, anchor).items()
    }
    assert_trees_close(merged, expected, rtol=2**-8)


@pytest.mark.parametrize("option", ["epsilon", "boost", "limit"])
def test_jit_of_vmap_over_each_number_equals_a_loop(option):
    merge = lambda x: ram_plus(  # noqa: E731
        STACK, ROW, base=BASE, **{"epsilon": 0.1, option: x}
    )
    assert_mapped_equals_a_loop(merge, jnp.asarray([0.0, 0.05, 0.2]))


def test_gradients_are_finite_on_zero_and_tiny_leaves():
    for merge in (ram, ram_plus):
        for size in (0.0, 1e-30, 1.0):
            gradient = jax.grad(
                lambda s, merge=merge: jnp.sum(
                    merge(s, ROW, base={"a": jnp.zeros((6, 5))})["a"] ** 2
                )
            )({"a": size * STACK["matrix"]})
            assert np.isfinite(gradient["a"]).all()


@settings(max_examples=20)
@given(shape=st.sampled_from([(1, 3), (3, 4)]), seed=st.integers(0, 2**16))
def test_the_result_lies_between_the_experts_that_changed_an_entry(shape, seed):
    random = np.random.default_rng(seed)
    deltas = random.normal(size=shape) * (random.random(shape) < 0.5)
    merged = ram(
        {"a": jnp.asarray(deltas, jnp.float32)},
        jnp.ones(shape[0]),
        base={"a": jnp.zeros(shape[1:])},
    )["a"]
    for i, x in enumerate(deltas.T):
        changed = x[x != 0] if (x != 0).any() else np.zeros(1)
        assert changed.min() - 1e-6 <= merged[i] <= changed.max() + 1e-6
