"""WUDI in closed form against its objective, and where its ridge pulls."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.wudi import wudi
from tests.merging.task_vectors import (
    SHAPES,
    assert_mapped_equals_a_loop,
    assert_trees_close,
    deltas_of,
    experts_and_base,
)

C: Any = np.asarray([0.5, 1.5, 1.0])


def least(deltas, c, ridge):
    """The minimum of the objective with ridge, as one least-squares problem."""
    num_in, num_out = deltas[0].shape
    trace = sum(w for w, d in zip(c, deltas, strict=True) if (d**2).sum() > 0)
    start = np.einsum("k,kio->io", np.asarray(c), np.asarray(deltas))
    rows, right = [], []
    for w, d in zip(c, deltas, strict=True):
        norm = np.sqrt((d**2).sum())
        if norm > 0:
            rows.append(np.sqrt(w) * d.T / norm)
            right.append(np.sqrt(w) * d.T @ d / norm)
    root = np.sqrt(ridge * trace / num_in)
    rows.append(root * np.eye(num_in))
    right.append(root * start)
    assert start.shape == (num_in, num_out)
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0]


def reference(stack, base, c, ridge=1e-3, others="mean"):
    merged = {}
    for name, deltas in deltas_of(stack, base).items():
        anchor = np.asarray(base[name], np.float64)
        if deltas.ndim == 3:
            merged[name] = anchor + least(deltas, c, ridge)
        elif others == "base":
            merged[name] = anchor
        else:
            mean = sum(w * d for w, d in zip(c, deltas, strict=True)) / np.sum(c)
            merged[name] = anchor + mean
    return merged


@pytest.mark.parametrize("others", ["mean", "base"])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_it_minimises_the_objective_with_ridge(ridge, others):
    shapes = {**SHAPES, "wide": (4, 9), "column": (5, 1), "row": (1, 5)}
    stack, base = experts_and_base(shapes=shapes)
    merged = wudi(stack, C, base=base, ridge=ridge, others=others)
    assert_trees_close(merged, reference(stack, base, C, ridge, others), 2e-5, 2e-5)


def test_it_interferes_less_than_the_sum_and_the_mean():
    stack, base = experts_and_base()
    deltas = deltas_of(stack, base)["matrix"]

    def interference(delta):
        return sum(np.sum((d.T @ (delta - d)) ** 2) / np.sum(d**2) for d in deltas)

    found = wudi(stack, jnp.ones(3), base=base)["matrix"] - np.asarray(base["matrix"])
    assert interference(found) < 1.001 * interference(least(deltas, np.ones(3), 1e-12))
    assert interference(found) < 0.5 * interference(deltas.sum(axis=0))
    assert interference(found) < 0.8 * interference(deltas.mean(axis=0))


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_task_vectors_with_inputs_of_their_own_are_added(ridge):
    random = np.random.default_rng(0)
    deltas = np.zeros((2, 6, 4), np.float32)
    deltas[0, :3], deltas[1, 3:] = random.normal(size=(2, 3, 4))
    base = random.normal(size=(6, 4)).astype(np.float32)
    merged = wudi({"w": base + deltas}, jnp.ones(2), base={"w": base}, ridge=ridge)
    np.testing.assert_allclose(merged["w"], base + deltas.sum(axis=0), atol=1e-5)


def test_a_large_ridge_is_task_arithmetic():
    stack, base = experts_and_base()
    merged = wudi(stack, C, base=base, ridge=1e6)["matrix"]
    deltas = deltas_of(stack, base)["matrix"]
    right = np.asarray(base["matrix"]) + np.einsum("k,kio->io", C, deltas)
    np.testing.assert_allclose(merged, right, atol=1e-5)


def test_low_rank_task_vectors_are_finite_without_any_ridge():
    random = np.random.default_rng(2)
    deltas = random.normal(size=(2, 12, 1)) * random.normal(size=(2, 1, 9))
    deltas = deltas.astype(np.float32)
    merged = wudi(
        {"w": jnp.asarray(deltas)},
        jnp.ones(2),
        base={"w": jnp.zeros((12, 9))},
        ridge=0.0,
    )["w"]
    # Both objectives can be met exactly: delta^T agrees with each on its direction.
    for d in deltas:
        scale = np.linalg.norm(d)
        np.testing.assert_allclose(d.T @ (merged - d) / scale**2, 0, atol=2e-3)


def test_the_size_of_task_vectors_scales_the_result():
    stack, base = experts_and_base()
    zero = {n: jnp.zeros_like(x) for n, x in base.items()}
    one = wudi(stack, C, base=zero)
    for scale in (1e-30, 1e-6, 1e6):
        small = wudi({n: scale * x for n, x in stack.items()}, C, base=zero)
        assert_trees_close({n: x / scale for n, x in small.items()}, one, 1e-4, 1e-4)


def test_embeddings_get_the_mean_unless_told_otherwise():
    random = np.random.default_rng(1)
    names = ["embeddings/word/embedding", "model.embed_tokens.weight", "shared.weight"]
    names += ["transformer.wte.weight", "layer/kernel"]
    stack = {n: jnp.asarray(random.normal(size=(2, 5, 3)), jnp.float32) for n in names}
    base = {n: jnp.zeros((5, 3)) for n in names}
    half = jnp.full(2, 0.5)
    flat = lambda t: {n: _leaf(t, n) for n in names}  # noqa: E731
    merged, free = (
        flat(wudi(stack, half, base=base)),
        flat(wudi(stack, half, base=base, exclude="none")),
    )
    for name in names:
        mean = np.mean(np.asarray(stack[name]), axis=0)
        assert np.allclose(merged[name], mean, atol=1e-6) == (name != "layer/kernel")
        assert not np.allclose(free[name], mean, atol=1e-3)


def _leaf(tree, name):
    for part in name.split("/"):
        tree = tree[part]
    return np.asarray(tree)


def test_both_layouts_of_kernels_agree():
    stack, base = experts_and_base(shapes={"w": (4, 7)})
    one = wudi(stack, C, base=base)["w"]
    two = wudi(
        {"w": jnp.swapaxes(stack["w"], 1, 2)},
        C,
        base={"w": base["w"].T},
        input_axis=-1,
    )["w"]
    np.testing.assert_allclose(two.T, one, rtol=1e-5, atol=1e-6)


def test_one_hot_and_zero_coefficients_return_that_expert_and_the_base():
    stack, base = experts_and_base()
    for k in range(3):
        merged = wudi(stack, jnp.eye(3)[k], base=base)
        assert_trees_close(merged, {n: x[k] for n, x in stack.items()}, 0, 3e-7)
    assert_trees_close(wudi(stack, jnp.zeros(3), base=base), base, 0, 0)


def test_dtype_is_kept_and_unknown_words_are_refused():
    stack, base = experts_and_base()
    half = lambda t: {n: x.astype(jnp.bfloat16) for n, x in t.items()}  # noqa: E731
    merged = wudi(half(stack), C, base=half(base))
    assert all(x.dtype == jnp.bfloat16 for x in merged.values())
    with pytest.raises(ValueError, match="others: 'none'"):
        wudi(stack, C, base=base, others="none")
    with pytest.raises(ValueError, match="input_axis: 0"):
        wudi(stack, C, base=base, input_axis=0)


def test_population_of_coefficients_and_ridges_equals_a_loop():
    stack, base = experts_and_base()
    assert_mapped_equals_a_loop(
        lambda row: wudi(stack, row[:3], base=base, ridge=row[3]),
        jnp.asarray([[0.2, 0.5, 0.3, 1e-3], [1, 0, 0, 1.0], [1, 2, 3, 0.1]]),
    )


def test_gradients_equal_finite_differences():
    stack, base = experts_and_base(shapes={"w": (4, 3)}, scale=1.0)

    def total(c, x):
        return jnp.sum(jnp.sin(wudi({**stack, "w": x}, c, base=base, ridge=0.1)["w"]))

    row, x = jnp.asarray(C, jnp.float32), stack["w"]
    by_c, by_x = jax.grad(total, argnums=(0, 1))(row, x)
    step, noise = 1e-2, jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    for k in range(3):
        e = step * jnp.eye(3)[k]
        difference = (total(row + e, x) - total(row - e, x)) / (2 * step)
        np.testing.assert_allclose(by_c[k], difference, rtol=1e-2, atol=1e-3)
    step = 1e-3
    difference = (total(row, x + step * noise) - total(row, x - step * noise)) / 2e-3
    np.testing.assert_allclose(jnp.sum(by_x * noise), difference, rtol=1e-2, atol=2e-3)


# A few shapes: each is compiled.
@settings(max_examples=20)
@given(st.sampled_from([(1, 3, 5), (2, 1, 4), (4, 5, 2)]), st.integers(0, 99))
def test_equal_experts_return_themselves(shape, seed):
    num_experts, rows, columns = shape
    random = np.random.default_rng(seed)
    base = random.normal(size=(rows, columns)).astype(np.float32)
    expert = base + random.normal(size=(rows, columns)).astype(np.float32)
    c = random.random(num_experts) + 0.1
    merged = wudi(
        {"w": jnp.stack([jnp.asarray(expert)] * num_experts)},
        jnp.asarray(c / c.sum(), jnp.float32),
        base={"w": jnp.asarray(base)},
    )["w"]
    np.testing.assert_allclose(merged, expert, rtol=1e-4, atol=1e-5)
