"""Fisher merging against its formula, and what its floor decides."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.fisher import fisher
from tests.merging.task_vectors import (
    assert_mapped_equals_a_loop,
    assert_trees_close,
    experts_and_base,
)

C: Any = np.asarray([0.2, 0.5, 0.3])


def fishers_of(stack, seed=1):
    """Fishers over many orders of magnitude, with zeros in some or all experts."""
    random = np.random.default_rng(seed)
    found = {}
    for name, x in stack.items():
        values = 10.0 ** random.uniform(-12, 0, x.shape)
        values[random.random(x.shape) < 0.3] = 0
        found[name] = jnp.asarray(values, jnp.float32)
    found["frozen"] = 0 * found["frozen"]
    return found


def reference(stack, fishers, c, floor, normalize):
    fishers = {n: np.asarray(f, np.float64) for n, f in fishers.items()}
    experts = len(c)
    if normalize == "tensor":
        for f in fishers.values():
            for k in range(experts):
                f[k] /= f[k].mean() or 1
    if normalize == "model":
        for k in range(experts):
            norm = np.sqrt(sum((f[k] ** 2).sum() for f in fishers.values()))
            for f in fishers.values():
                f[k] /= norm
    everything = np.concatenate([f.ravel() for f in fishers.values()])
    merged = {}
    for name, x in stack.items():
        x = np.asarray(x, np.float64).reshape(experts, -1)
        f = fishers[name].reshape(experts, -1)
        least = floor * (everything if normalize == "model" else f).mean()
        out = np.zeros(x.shape[1])
        for i in range(x.shape[1]):
            weights = [c[k] * max(f[k, i], least) for k in range(experts)]
            if sum(weights) == 0:
                weights = c
            out[i] = sum(w * x[k, i] for k, w in enumerate(weights)) / sum(weights)
        merged[name] = out.reshape(stack[name].shape[1:])
    return merged


@pytest.mark.parametrize("normalize", ["none", "model", "tensor"])
@pytest.mark.parametrize("floor", [1e-6, 0.1, 0.0])
def test_it_equals_the_formula_entry_by_entry(normalize, floor):
    stack, _ = experts_and_base()
    fishers = fishers_of(stack)
    merged = fisher(stack, C, statistics=fishers, floor=floor, normalize=normalize)
    assert_trees_close(merged, reference(stack, fishers, C, floor, normalize))


def test_exact_fishers_of_two_one_weight_models_give_the_known_answer():
    # Logits [w x, 0] with x = 1: the Fisher is p (1 - p).
    weights = np.asarray([0.0, 2.0])
    p = 1 / (1 + np.exp(-weights))
    merged = fisher(
        {"w": jnp.asarray(weights, jnp.float32)},
        jnp.full(2, 0.5),
        statistics={"w": jnp.asarray(p * (1 - p), jnp.float32)},
    )
    np.testing.assert_allclose(merged["w"], 0.591524, atol=2e-6)
    merged = fisher(
        {"w": jnp.asarray([1.0, 3.0])},
        jnp.full(2, 0.5),
        statistics={"w": jnp.asarray([0.217987, 0.034376])},
    )
    np.testing.assert_allclose(merged["w"], 1.272436, atol=5e-6)


def test_where_no_expert_has_a_fisher_the_mean_by_coefficients_is_taken():
    stack = {"w": jnp.asarray([[1.0, 1.0], [3.0, 3.0]])}
    f = {"w": jnp.asarray([[1.0, 0.0], [0.5, 0.0]])}
    merged = fisher(stack, jnp.asarray([0.5, 1.5]), statistics=f)
    np.testing.assert_allclose(merged["w"], [(0.5 + 2.25) / 1.25, 2.5], rtol=1e-6)
    # Nowhere at all, and without a floor.
    nothing = {"w": jnp.zeros((2, 2))}
    for floor in (0.0, 1e-6):
        merged = fisher(stack, jnp.asarray([0.5, 1.5]), statistics=nothing, floor=floor)
        np.testing.assert_allclose(merged["w"], [2.5, 2.5], rtol=1e-6)


@pytest.mark.parametrize("normalize", ["none", "model", "tensor"])
def test_the_unit_of_the_fishers_does_not_count(normalize):
    stack, _ = experts_and_base()
    fishers = {n: jnp.maximum(f, 1e-6) for n, f in fishers_of(stack).items()}
    small = {n: 1e-24 * f for n, f in fishers.items()}
    assert_trees_close(
        fisher(stack, C, statistics=small, normalize=normalize),
        fisher(stack, C, statistics=fishers, normalize=normalize),
    )


def test_one_large_entry_decides_nothing_in_other_tensors():
    """By the norm of the model the first expert would have lost both."""
    stack = {"a": jnp.asarray([[1.0, 1.0], [3.0, 3.0]]), "b": jnp.asarray([[1.0], [3]])}
    fishers = {n: jnp.ones_like(x) for n, x in stack.items()}
    fishers["b"] = fishers["b"].at[0].set(1e6)
    half = jnp.full(2, 0.5)
    by_tensor = fisher(stack, half, statistics=fishers, normalize="tensor")
    np.testing.assert_allclose(by_tensor["a"], [2.0, 2.0], rtol=1e-6)
    by_model = fisher(stack, half, statistics=fishers, normalize="model")
    assert (np.asarray(by_model["a"]) > 2.9).all()


def test_a_louder_expert_counts_more_unless_fishers_are_normalised():
    stack, _ = experts_and_base(num_experts=2)
    fishers = {n: jnp.ones_like(x) for n, x in stack.items()}
    loud = {n: f.at[0].multiply(99.0) for n, f in fishers.items()}
    half = jnp.full(2, 0.5)
    mean = {n: jnp.mean(x, axis=0) for n, x in stack.items()}
    for norm in ("model", "tensor"):
        assert_trees_close(fisher(stack, half, statistics=loud, normalize=norm), mean)
    with pytest.raises(ValueError, match="'l2' is not one of none, model, tensor"):
        fisher(stack, half, statistics=loud, normalize="l2")
    tilted = {n: 0.99 * x[0] + 0.01 * x[1] for n, x in stack.items()}
    assert_trees_close(fisher(stack, half, statistics=loud), tilted)


@settings(max_examples=15)
@given(st.integers(0, 99), st.floats(-12, 6))
def test_normalising_is_dividing_coefficients_by_the_norm_of_the_model(seed, exponent):
    # The released estimator divides coefficients; without a floor that is the same.
    stack, _ = experts_and_base()
    fishers = fishers_of(stack, seed)
    loud = np.asarray([1.0, 10.0**exponent, 3.0])
    fishers = {
        n: f * jnp.asarray(loud, jnp.float32).reshape(-1, *[1] * (f.ndim - 1))
        for n, f in fishers.items()
    }
    norms = np.sqrt(
        sum(
            (np.asarray(f, np.float64).reshape(3, -1) ** 2).sum(axis=1)
            for f in fishers.values()
        )
    )
    assert_trees_close(
        fisher(stack, C, statistics=fishers, floor=0.0, normalize="model"),
        # Entries that no expert knows fall back to the mean by the coefficients given.
        {
            n: np.where(
                np.asarray(fishers[n]).max(axis=0) > 0,
                x,
                np.tensordot(C, np.asarray(stack[n], np.float64), 1),
            )
            for n, x in reference(stack, fishers, C / norms, 0.0, False).items()
        },
        rtol=1e-5,
        atol=2e-6,
    )


def test_one_hot_coefficients_return_that_expert_bit_for_bit():
    stack, _ = experts_and_base()
    for k in range(3):
        merged = fisher(stack, jnp.eye(3)[k], statistics=fishers_of(stack))
        assert_trees_close(merged, {n: x[k] for n, x in stack.items()}, 0, 0)


def test_experts_are_permuted_together_with_their_fishers():
    stack, _ = experts_and_base()
    fishers, order = fishers_of(stack), jnp.asarray([2, 0, 1])
    assert_trees_close(
        fisher(
            {n: x[order] for n, x in stack.items()},
            C[np.asarray(order)],
            statistics={n: f[order] for n, f in fishers.items()},
        ),
        fisher(stack, C, statistics=fishers),
    )


def test_population_of_coefficients_and_floors_equals_a_loop():
    stack, _ = experts_and_base()
    fishers = fishers_of(stack)
    assert_mapped_equals_a_loop(
        lambda row: fisher(
            stack, row[:3], statistics=fishers, floor=row[3], normalize="model"
        ),
        jnp.asarray([[0.1, 0.2, 0.7, 0.0], [1.0, 2.0, 0.0, 1e-6], [1, 1, 1, 0.5]]),
    )


def test_gradients_equal_finite_differences_and_are_finite_on_odd_leaves():
    stack, _ = experts_and_base()
    fishers = fishers_of(stack)

    def total(c, x):
        merged = fisher(x, c, statistics=fishers)
        return sum(jnp.sum(jnp.sin(y)) for y in merged.values())

    row, step = jnp.asarray(C, jnp.float32), 1e-2
    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))
    by_c, by_x = slopes(row, stack)
    assert all(np.isfinite(x).all() for x in by_x.values())
    for k in range(3):
        e = step * jnp.eye(3)[k]
        difference = (total(row + e, stack) - total(row - e, stack)) / (2 * step)
        np.testing.assert_allclose(by_c[k], difference, rtol=2e-2, atol=2e-3)
    for scale in (0.0, 1e-30):
        odd = {n: scale * x for n, x in stack.items()}
        assert np.isfinite(slopes(row, odd)[0]).all()


def test_fishers_that_do_not_fit_are_all_listed():
    stack, _ = experts_and_base()
    fishers = fishers_of(stack)
    del fishers["matrix"]
    fishers["odd"] = jnp.ones(3)
    fishers["vector"] = fishers["vector"][:, :2]
    with pytest.raises(ValueError, match=r"matrix: missing(.|\n)*odd(.|\n)*vector: "):
        fisher(stack, C, statistics=fishers)


def test_dtype_is_kept_and_whole_numbers_need_no_fisher():
    stack = {
        "w": jnp.asarray([[1.0, 2.0], [3.0, 4.0]], jnp.bfloat16),
        "steps": jnp.asarray([7, 7]),
    }
    merged = fisher(stack, jnp.full(2, 0.5), statistics={"w": jnp.ones((2, 2))})
    assert merged["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(merged["w"], np.float32), [2, 3])
    assert merged["steps"] == 7


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99), st.floats(-30, 10))
def test_every_entry_lies_between_the_experts(num_experts, size, seed, exponent):
    random = np.random.default_rng(seed)
    x = random.normal(size=(num_experts, size)).astype(np.float32)
    f = (random.random((num_experts, size)) * 10.0**exponent).astype(np.float32)
    merged = fisher(
        {"w": jnp.asarray(x)},
        jnp.asarray(random.random(num_experts) + 0.1, jnp.float32),
        statistics={"w": jnp.asarray(f)},
    )["w"]
    assert (np.asarray(merged) >= x.min(axis=0) - 1e-6).all()
    assert (np.asarray(merged) <= x.max(axis=0) + 1e-6).all()
