"""KnOTS against its formula, and what a common basis may not change."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.knots import knots
from fusion_jax.merging.linear import task_arithmetic
from tests.merging.task_vectors import (
    SHAPES,
    assert_mapped_equals_a_loop,
    assert_trees_close,
    combined,
    deltas_of,
    experts_and_base,
)

C: Any = np.asarray([0.2, 0.5, 0.3])


def merged_matrix(deltas, c, density, inner):
    """One matrix, with the SVD of the stack in float64."""
    num_experts, num_in, _ = deltas.shape
    left, values, basis = np.linalg.svd(
        np.concatenate(list(deltas)), full_matrices=False
    )
    keep = values > 1e-5 * values[0]
    left, values, basis = left[:, keep], values[keep], basis[keep]
    parts = np.stack(
        [left[k * num_in : (k + 1) * num_in] * values for k in range(num_experts)]
    )
    if inner == "ties":
        parts = np.ascontiguousarray(parts)
        for part in parts:
            kept = int(np.floor(density * part.size + 1e-6))
            order = np.argsort(-np.abs(part).ravel(), kind="stable")
            part.ravel()[order[kept:]] = 0
        return combined(parts, c, "unweighted", "mean", zero_sign=0.0) @ basis
    return np.einsum("k,kir->ir", c, parts) @ basis


def reference(stack, base, c, density=0.2, scale=1.0, inner="ties"):
    merged = {}
    for name, deltas in deltas_of(stack, base).items():
        if deltas.ndim == 3:
            delta = merged_matrix(deltas, c, density, inner)
        else:
            delta = sum(w * d for w, d in zip(c, deltas, strict=True)) / np.sum(c)
        merged[name] = np.asarray(base[name], np.float64) + scale * delta
    return merged


@pytest.mark.parametrize("inner", ["ties", "sum"])
@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
def test_it_equals_the_formula(density, inner):
    shapes = {**SHAPES, "wide": (3, 13), "column": (5, 1), "row": (1, 5)}
    stack, base = experts_and_base(shapes=shapes)
    options = {"density": density, "scale": 0.6, "inner": inner}
    merged = jax.jit(partial(knots, **options))(stack, C, base=base)
    assert_trees_close(
        merged, reference(stack, base, C, density, 0.6, inner), 1e-5, 2e-6
    )


def low_rank(seed, rank=2, num_experts=3, num_in=8, num_out=6):
    random = np.random.default_rng(seed)
    down = random.normal(size=(num_experts, num_in, rank))
    up = random.normal(size=(num_experts, rank, num_out))
    return jnp.asarray(down @ up, jnp.float32)


def test_density_is_of_the_rank_and_not_of_all_columns():
    # Rank 3 of 6 columns: half of 8 * 3 entries are kept, not half of 8 * 6.
    deltas = low_rank(0, rank=1)
    base = {"w": jnp.zeros((8, 6))}
    merged = knots({"w": deltas}, C, base=base, density=0.5)["w"]
    right = merged_matrix(np.asarray(deltas, np.float64), C, 0.5, "ties")
    np.testing.assert_allclose(merged, right, rtol=1e-4, atol=1e-5)
    everything = knots({"w": deltas}, C, base=base, density=1.0)["w"]
    assert np.abs(np.asarray(merged - everything)).max() > 0.05


def test_a_sum_inside_the_basis_is_task_arithmetic():
    stack, base = experts_and_base(shapes={"w": (6, 5), "v": (2, 9)})
    del stack["constant"], base["constant"]
    assert_trees_close(
        knots(stack, C, base=base, inner="sum", scale=0.7),
        task_arithmetic(stack, C, base=base, scale=0.7),
    )


@pytest.mark.parametrize("inner", ["ties", "sum"])
def test_adapters_are_merged_as_products_and_never_factor_by_factor(inner):
    # dW = 1 twice, and the same dW = 1 written as (-1)(-1): merging A and B apart
    # gives 2 (or .5) and 0.
    for factors in ([(1.0, 1.0), (1.0, 1.0)], [(1.0, 1.0), (-1.0, -1.0)]):
        base = jnp.asarray([[0.25]])
        experts = jnp.stack([base + b * a for b, a in factors])
        merged = knots(
            {"w": experts}, jnp.full(2, 0.5), base={"w": base}, density=1.0, inner=inner
        )
        np.testing.assert_allclose(merged["w"], [[1.25]], rtol=1e-6)


def test_opposite_task_vectors_elect_nobody_whatever_the_signs_of_the_basis():
    delta = low_rank(1)[0]
    base = {"w": jnp.zeros((8, 6))}
    experts = {"w": jnp.stack([delta, -delta])}
    merged = knots(experts, jnp.full(2, 0.5), base=base, density=1.0)
    np.testing.assert_allclose(merged["w"], base["w"], atol=1e-5)


def test_the_size_of_task_vectors_scales_the_result():
    deltas, base = low_rank(2), {"w": jnp.zeros((8, 6))}
    one = np.asarray(knots({"w": deltas}, C, base=base)["w"])
    assert np.abs(one).max() > 0.1
    for scale in (1e-30, 1e-8, 1e8):
        small = knots({"w": scale * deltas}, C, base=base)["w"]
        np.testing.assert_allclose(small / scale, one, rtol=1e-4, atol=1e-5)


def test_both_layouts_of_kernels_agree():
    stack, base = experts_and_base(shapes={"w": (4, 7)})
    one = knots(stack, C, base=base)["w"]
    turned = {"w": jnp.swapaxes(stack["w"], 1, 2)}
    two = knots(turned, C, base={"w": base["w"].T}, input_axis=-1)["w"]
    np.testing.assert_allclose(two.T, one, rtol=1e-5, atol=1e-6)
    # The axis counts: it is the other one that is shared.
    other = knots(turned, C, base={"w": base["w"].T})["w"]
    assert np.abs(np.asarray(other.T - one)).max() > 1e-3


def test_leaves_that_nobody_changed_and_zero_coefficients_return_the_base():
    stack, base = experts_and_base()
    np.testing.assert_array_equal(knots(stack, C, base=base)["frozen"], base["frozen"])
    assert_trees_close(knots(stack, jnp.zeros(3), base=base), base, 0, 0)


def test_dtype_is_kept_and_unknown_words_are_refused():
    stack, base = experts_and_base()
    half = lambda t: {n: x.astype(jnp.bfloat16) for n, x in t.items()}  # noqa: E731
    merged = knots(half(stack), C, base=half(base))
    assert all(x.dtype == jnp.bfloat16 for x in merged.values())
    with pytest.raises(ValueError, match="inner: 'mean'"):
        knots(stack, C, base=base, inner="mean")
    with pytest.raises(ValueError, match="input_axis: 1"):
        knots(stack, C, base=base, input_axis=1)


def test_population_of_coefficients_density_scale_and_cut_equals_a_loop():
    stack, base = experts_and_base(shapes={"w": (6, 5), "b": (4,)})
    assert_mapped_equals_a_loop(
        lambda row: knots(
            stack, row[:3], base=base, density=row[3], scale=row[4], cut=row[5]
        ),
        jnp.asarray(
            [[0.2, 0.5, 0.3, 0.2, 1, 1e-5], [1, 0, 2, 1, 0.5, 0.3], [1, 1, 1, 0, 2, 0]]
        ),
    )


# A few shapes: each is compiled.
@settings(max_examples=20)
@given(st.sampled_from([(2, 1, 5), (3, 4, 4), (4, 6, 2)]), st.integers(0, 99))
def test_outputs_may_be_rotated_before_or_after(shape, seed):
    num_experts, num_in, num_out = shape
    # The basis is that of the task vectors, not that of the coordinates.
    random = np.random.default_rng(seed)
    deltas = random.normal(size=(num_experts, num_in, num_out))
    rotation, _ = np.linalg.qr(random.normal(size=(num_out, num_out)))
    base = {"w": jnp.zeros((num_in, num_out))}
    c = jnp.asarray(random.random(num_experts) + 0.1, jnp.float32)

    def merge(x):
        return np.asarray(
            knots({"w": jnp.asarray(x, jnp.float32)}, c, base=base, density=1.0)["w"]
        )

    np.testing.assert_allclose(
        merge(deltas @ rotation), merge(deltas) @ rotation, atol=5e-4
    )
