"""Model Stock: the ratio from angles, its pole, and tiny or equal deltas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusion_jax.merging.model_stock import model_stock, model_stock_form

SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 2)]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def merge(experts, base, row=None, **options):
    experts = jnp.asarray(experts, jnp.float32)
    row = jnp.ones(len(experts)) if row is None else jnp.asarray(row, jnp.float32)
    base = {"w": jnp.asarray(base, jnp.float32)}
    return np.asarray(model_stock({"w": experts}, row, base=base, **options)["w"])


def reference(experts, base):
    base = np.asarray(base, np.float64)
    deltas = [np.asarray(x, np.float64) - base for x in experts]
    cosines = []
    for i in range(len(deltas)):
        for j in range(i):
            lengths = np.linalg.norm(deltas[i]) * np.linalg.norm(deltas[j])
            inner = np.sum(deltas[i] * deltas[j])
            cosines.append(inner / lengths if lengths > 0 else 0)
    q, num_experts = np.mean(cosines), len(deltas)
    t = num_experts * q / (1 + (num_experts - 1) * q) if q > 0 else 0.0
    t = min(max(t, 0), 1)
    return t * sum(base + d for d in deltas) / num_experts + (1 - t) * base


@pytest.mark.parametrize("num_experts", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_formula_in_float64(shape, num_experts):
    base = normal(1, *shape)
    experts = base + 0.5 * normal(2, *shape) + normal(3, num_experts, *shape)
    expected = reference(experts, base)
    np.testing.assert_allclose(merge(experts, base), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("input_axis", [-2, -1])
def test_filter_wise_gives_each_output_unit_its_own_ratio(input_axis):
    base, experts = normal(4, 3, 4), normal(5, 3, 3, 4) + 1
    moved = np.moveaxis(experts, input_axis, -1)
    anchor = np.moveaxis(base, input_axis, -1)
    rows = [reference(moved[:, i], anchor[i]) for i in range(len(anchor))]
    expected = np.moveaxis(np.stack(rows), -1, input_axis)
    got = merge(experts, base, filter_wise=True, input_axis=input_axis)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(got - merge(experts, base)).max() > 1e-2
    assert model_stock_form(filter_wise=True, input_axis=input_axis).unit == "row"


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("delta", [0.0, 1e-4, 1e-5, 1.0])
def test_equal_experts_are_unchanged_however_near_the_base(delta, shape, filter_wise):
    # R3: absolute floors shrank deltas of 1e-4 by a factor of 13.
    expert = np.full(shape, delta, np.float32)
    merged = merge(np.stack([expert] * 2), 0 * expert, filter_wise=filter_wise)
    np.testing.assert_allclose(merged, expert, rtol=1e-6)


def test_opposite_experts_return_the_base():
    # R2: the ratio has a pole at -1 and was -85 there.
    near = merge([[1.0, 0.0], [-0.977, 0.2132]], [0.0, 0.0])
    np.testing.assert_array_equal(near, [0.0, 0.0])
    exact = merge([[2.0, 1.0], [0.0, 1.0]], [1.0, 1.0])
    np.testing.assert_array_equal(exact, [1.0, 1.0])


def test_three_experts_at_the_pole_return_the_base():
    angles = 2 * np.pi * np.arange(3) / 3
    experts = np.stack([np.cos(angles), np.sin(angles)], axis=1) + 5
    np.testing.assert_array_equal(merge(experts, [5.0, 5.0]), [5.0, 5.0])


def test_three_cosines_are_averaged_as_cosines():
    # Cosines .9, .5, .1: t = 3 * .5 / 2; the mean of the angles would give .785.
    gram = np.asarray([[1, 0.9, 0.5], [0.9, 1, 0.1], [0.5, 0.1, 1]])
    values, vectors = np.linalg.eigh(gram)
    assert values.min() > 0
    experts = vectors * np.sqrt(values)
    np.testing.assert_allclose(
        merge(experts, np.zeros(3)), 0.75 * experts.mean(0), rtol=1e-5, atol=1e-6
    )


def test_coefficients_do_not_count():
    experts, base = normal(6, 3, 4), normal(7, 4)
    np.testing.assert_array_equal(
        merge(experts, base, [0.1, 5, 0]), merge(experts, base)
    )


def test_one_expert_or_no_base_is_refused():
    with pytest.raises(ValueError, match="needs two or more"):
        merge(normal(8, 1, 4), normal(9, 4))
    with pytest.raises(ValueError, match="model_stock: needs base"):
        model_stock({"w": jnp.ones((2, 3))}, jnp.ones(2))
    with pytest.raises(ValueError, match="input_axis"):
        model_stock_form(input_axis=1)


def test_dtype_is_kept():
    base = {"w": jnp.ones(4, jnp.bfloat16)}
    experts = {"w": jnp.asarray(normal(10, 2, 4), jnp.bfloat16)}
    assert model_stock(experts, jnp.ones(2), base=base)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("filter_wise", [False, True])
def test_jit_of_vmap_over_coefficients_equals_a_loop(filter_wise):
    experts, base = normal(11, 3, 3, 4) + 1, normal(12, 3, 4)
    rows = jnp.asarray(normal(13, 4, 3))
    stack, anchor = {"w": jnp.asarray(experts)}, {"w": jnp.asarray(base)}
    many = jax.jit(
        jax.vmap(
            lambda row: model_stock(stack, row, base=anchor, filter_wise=filter_wise)
        )
    )(rows)["w"]
    one = merge(experts, base, filter_wise=filter_wise)
    np.testing.assert_allclose(many, np.stack([one] * 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0])
def test_gradients_by_the_experts_are_finite(scale, filter_wise):
    base = {"w": jnp.zeros((2, 3))}
    for experts in (np.ones((2, 2, 3)), normal(14, 2, 2, 3)):
        found = jax.grad(
            lambda s: jnp.sum(
                model_stock(s, jnp.ones(2), base=base, filter_wise=filter_wise)["w"]
            )
        )({"w": jnp.asarray(scale * experts, jnp.float32)})
        assert np.isfinite(found["w"]).all()


@settings(max_examples=20, deadline=None)
@given(
    experts=hnp.arrays(
        np.float32,
        st.sampled_from([(2, 1), (3, 4), (2, 2, 3)]),
        elements=st.floats(-100, 100, width=32),
    ),
    scale=st.sampled_from([2.0**-20, 2.0**-7, 2.0**9]),
)
def test_scaled_deltas_give_the_scaled_result_between_base_and_mean(experts, scale):
    zero = np.zeros(experts.shape[1:])
    merged = merge(experts, zero)
    mean = experts.astype(np.float64).mean(0)
    slack = 1e-4 + 1e-5 * np.abs(mean)
    assert (merged * np.sign(mean) >= -slack).all()
    assert (np.abs(merged) <= np.abs(mean) + slack).all()
    np.testing.assert_allclose(
        merge(scale * experts, zero), scale * merged, rtol=1e-5, atol=scale * 1e-5
    )
