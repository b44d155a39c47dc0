"""Merges on the sphere: right answers, poles, rows, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusion_jax import trees
from fusion_jax.merging.form import Block
from fusion_jax.merging.spherical import nuslerp, nuslerp_form, slerp
from fusion_jax.merging.spherical_means import karcher, multislerp

SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 2)]
METHODS = [slerp, nuslerp, multislerp, karcher]
# Their defaults of a jitted call with a base.
WITH_BASE = [nuslerp, multislerp, karcher]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def merge(method, experts, coefficients, base=None, **options):
    if base is not None:
        options["base"] = {"w": jnp.asarray(base, jnp.float32)}
    experts = {"w": jnp.asarray(experts, jnp.float32)}
    row = jnp.asarray(coefficients, jnp.float32)
    return np.asarray(method(experts, row, **options)["w"])


def arc_reference(one, two, t):
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    lengths = np.linalg.norm(one), np.linalg.norm(two)
    if 0 in lengths:
        return (1 - t) * one + t * two
    cosine = np.sum(one * two) / lengths[0] / lengths[1]
    if abs(cosine) > 0.9995:
        return (1 - t) * one + t * two
    w = np.arccos(cosine)
    return (np.sin((1 - t) * w) * one + np.sin(t * w) * two) / np.sin(w)


def mean_reference(experts, c, steps):
    """On the vectors themselves, with as many Karcher steps as asked for."""
    v = np.asarray(experts, np.float64).reshape(len(c), -1)
    c = np.asarray(c, np.float64)
    lengths = np.linalg.norm(v, axis=1)
    units = [x / n for x, n in zip(v, lengths, strict=True) if n > 0]
    share = [x for x, n in zip(c, lengths, strict=True) if n > 0]
    if not units:
        return np.zeros(np.shape(experts)[1:])
    share = np.asarray(share) / sum(share)
    u = sum(a * x for a, x in zip(share, units, strict=True))
    u /= np.linalg.norm(u)
    for _ in range(steps):
        step = np.zeros_like(u)
        for a, x in zip(share, units, strict=True):
            w = np.arctan2(np.linalg.norm(x - (x @ u) * u), x @ u)
            if 1e-12 < w < np.pi - 1e-9:
                step += a * w / np.sin(w) * (x - np.cos(w) * u)
        length = np.linalg.norm(step)
        if length > 0:
            u = np.cos(length) * u + np.sin(length) * step / length
    return (np.sum(c * lengths) * u).reshape(np.shape(experts)[1:])


@pytest.mark.parametrize("shape", SHAPES)
def test_slerp_equals_the_formula_in_float64(shape):
    experts = normal(1, 2, *shape)
    for t in (0.0, 0.3, 1.0, 1.4):
        np.testing.assert_allclose(
            merge(slerp, experts, [1 - t, t]),
            arc_reference(*experts, t),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_nuslerp_equals_the_formula_on_deltas_in_float64(shape):
    experts, base = normal(2, 2, *shape), normal(3, *shape)
    wide = np.asarray(experts, np.float64) - base
    np.testing.assert_allclose(
        merge(nuslerp, experts, [3.0, 1.0], base),
        base + arc_reference(*wide, 0.25),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(
        merge(nuslerp, experts, [3.0, 1.0]), merge(slerp, experts, [0.75, 0.25])
    )


@pytest.mark.parametrize("input_axis", [-2, -1])
def test_nuslerp_gives_each_row_or_column_its_own_angle(input_axis):
    experts, base = normal(4, 2, 3, 4), normal(5, 3, 4)
    wide = np.asarray(experts, np.float64) - base
    by_axis = {}
    for axis in (-2, -1):
        merged = np.moveaxis(np.zeros((3, 4)), axis, -1)
        one, two = (np.moveaxis(x, axis, -1) for x in wide)
        for i in range(len(merged)):
            merged[i] = arc_reference(one[i], two[i], 0.4)
        by_axis[axis] = base + np.moveaxis(merged, -1, axis)
    for vectors, axis in (("row", input_axis), ("column", -3 - input_axis)):
        got = merge(
            nuslerp, experts, [0.6, 0.4], base, vectors=vectors, input_axis=input_axis
        )
        np.testing.assert_allclose(got, by_axis[axis], rtol=1e-5, atol=1e-6)
    assert np.abs(by_axis[-1] - by_axis[-2]).max() > 1e-2


@pytest.mark.parametrize("vectors", ["row", "column"])
def test_leaves_of_one_axis_or_none_are_one_vector(vectors):
    for shape in [(), (1,), (5,)]:
        experts = normal(6, 2, *shape)
        np.testing.assert_allclose(
            merge(nuslerp, experts, [0.6, 0.4], vectors=vectors),
            merge(nuslerp, experts, [0.6, 0.4]),
            rtol=1e-6,
        )


def test_rows_given_piece_by_piece_are_the_rows_of_the_whole():
    experts, base = normal(7, 2, 4, 3), normal(8, 4, 3)
    form = nuslerp_form(vectors="row", input_axis=-1)
    assert (form.unit, form.passes) == ("row", ())
    whole = merge(nuslerp, experts, [0.5, 0.5], base, vectors="row", input_axis=-1)
    for rows in (slice(0, 3), slice(3, 4)):
        block = Block(
            experts=jnp.asarray(experts[:, rows]),
            base=jnp.asarray(base[rows]),
            coefficients=jnp.asarray([0.5, 0.5]),
            start=3 * rows.start,
            keys=None,
            valid=None,
            size=12,
            shape=(4, 3),
            name="w",
        )
        np.testing.assert_allclose(form.apply(block, {}, {}), whole[rows], rtol=1e-6)


def test_a_zero_expert_gives_the_line():
    # R1: half of [1, 1], where an arc of a zero norm gave its square root.
    zero_and_one = [[0.0, 0.0], [1.0, 1.0]]
    for method in (slerp, nuslerp):
        np.testing.assert_array_equal(
            merge(method, zero_and_one, [0.5, 0.5]), [0.5, 0.5]
        )


def test_parallel_experts_give_the_line():
    one = normal(9, 6)
    np.testing.assert_allclose(
        merge(slerp, np.stack([one, 2 * one]), [0.7, 0.3]), 1.3 * one, rtol=1e-6
    )


@pytest.mark.parametrize("row", [[0.0, 0.0], [1.0, -1.0]])
def test_coefficients_of_sum_zero_are_the_middle(row):
    experts = normal(10, 2, 5)
    np.testing.assert_array_equal(
        merge(slerp, experts, row), merge(slerp, experts, [0.5, 0.5])
    )


def test_other_than_two_experts_are_refused_by_name():
    for method in (slerp, nuslerp):
        with pytest.raises(ValueError, match=f"{method.__name__}: 3 experts"):
            merge(method, normal(11, 3, 2), [0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match="leaf, row, column"):
        nuslerp_form(vectors="rows")
    with pytest.raises(ValueError, match="input_axis"):
        nuslerp_form(input_axis=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("method", "steps"), [(multislerp, 0), (karcher, 10)])
def test_mean_directions_equal_the_formula_in_float64(method, steps, shape):
    base = normal(12, *shape)
    # Round a common direction: opposite scalars have no mean direction.
    experts = base + 2 + normal(13, 3, *shape) * 0.7
    row = np.asarray([0.2, 0.5, 0.4])
    deltas = np.asarray(experts, np.float64) - base
    np.testing.assert_allclose(
        merge(method, experts, row, base),
        base + mean_reference(deltas, row, steps),
        rtol=1e-5,
        atol=2e-6,
    )
    np.testing.assert_allclose(
        merge(method, experts, row),
        mean_reference(experts, row, steps),
        rtol=1e-5,
        atol=2e-6,
    )


def test_karcher_meets_its_condition_and_differs_from_the_first_direction():
    experts = normal(14, 3, 40)
    row = np.asarray([0.6, 0.3, 0.1])
    merged = np.asarray(merge(karcher, experts, row), np.float64)
    u = merged / np.linalg.norm(merged)
    units = experts / np.linalg.norm(experts, axis=1, keepdims=True)
    cosine = units @ u
    pull = row * np.arccos(cosine) / np.sin(np.arccos(cosine))
    tangent = pull @ (units - cosine[:, None] * u)
    assert np.linalg.norm(tangent) < 1e-5
    assert np.abs(merged - merge(multislerp, experts, row)).max() > 1e-3


def test_multislerp_is_the_sum_of_norms_times_the_mean_direction():
    # The published tangent step is always zero; three experts of any kind show it.
    experts = normal(15, 3, 7)
    row = np.asarray([0.2, 0.5, 0.3])
    norms = np.linalg.norm(experts, axis=1)
    direction = (row / norms) @ experts
    direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(
        merge(multislerp, experts, row), (row @ norms) * direction, rtol=1e-5
    )


@pytest.mark.parametrize("method", [multislerp, karcher])
def test_antipodal_experts_give_the_weighted_sum(method):
    # R30: no direction is right, so the documented one is taken.
    np.testing.assert_allclose(
        merge(method, [[1.0, 0.0], [-1.0, 1e-9]], [0.5, 0.5]), [0, 5e-10], atol=1e-12
    )
    np.testing.assert_allclose(
        merge(method, [[1.0, 0.0], [-3.0, 0.0]], [0.5, 0.5]), [-1, 0], atol=1e-6
    )


def test_karcher_is_not_pulled_by_an_expert_opposite_to_the_mean():
    merged = merge(karcher, [[2.0, 0.0], [-1.0, 0.0]], [0.75, 0.25])
    np.testing.assert_allclose(merged, [1.75, 0], atol=1e-6)


@pytest.mark.parametrize("method", [multislerp, karcher])
def test_a_zero_expert_counts_in_the_norm_alone(method):
    experts = np.concatenate([normal(16, 1, 5), np.zeros((1, 5), np.float32)])
    np.testing.assert_allclose(
        merge(method, experts, [0.25, 0.75]), 0.25 * experts[0], rtol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_one_hot_coefficients_return_that_expert_bit_for_bit(method):
    experts = normal(17, 2, 3, 4)
    for k in range(2):
        np.testing.assert_array_equal(merge(method, experts, np.eye(2)[k]), experts[k])


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-30])
@pytest.mark.parametrize("method", METHODS)
def test_equal_constant_leaves_return_themselves(method, value):
    expert = np.full((2, 3), value, np.float32)
    np.testing.assert_allclose(
        merge(method, np.stack([expert] * 2), [0.4, 0.6]), expert, rtol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_dtype_is_kept(method):
    experts = {"w": jnp.asarray(normal(18, 2, 4), jnp.bfloat16)}
    assert method(experts, jnp.asarray([0.5, 0.5]))["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("method", METHODS)
def test_scaled_experts_give_the_scaled_result(method, scale):
    experts = normal(19, 2, 3, 4)
    np.testing.assert_allclose(
        merge(method, scale * experts, [0.4, 0.6]),
        scale * merge(method, experts, [0.4, 0.6]),
        rtol=1e-5,
    )


@pytest.mark.parametrize("method", METHODS)
def test_jit_of_vmap_over_coefficients_equals_a_loop(method):
    experts = normal(20, 2, 3, 4)
    rows = jnp.asarray([[1.0, 0.0], [0.5, 0.5], [0.2, 0.9], [0.0, 0.0]])
    stack = {"w": jnp.asarray(experts)}
    many = jax.jit(jax.vmap(lambda row: method(stack, row)["w"]))(rows)
    for row, one in zip(rows, many, strict=True):
        np.testing.assert_allclose(
            one, merge(method, experts, row), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["zero", "constant", "tiny", "opposite", "one zero"])
def test_gradients_are_finite_at_every_pole(method, kind):
    experts = {
        "zero": np.zeros((2, 3)),
        "constant": np.ones((2, 3)),
        "tiny": 1e-30 * normal(21, 2, 3),
        "opposite": np.asarray([[1.0, 2, 3], [-1, -2, -3]]),
        "one zero": np.asarray([[1.0, 2, 3], [0, 0, 0]]),
    }[kind]

    def total(stack, row):
        return jnp.sum(method(stack, row)["w"])

    stack = {"w": jnp.asarray(experts, jnp.float32)}
    found = jax.grad(total, argnums=(0, 1))(stack, jnp.asarray([0.6, 0.4]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_differences(method):
    stack, row = {"w": jnp.asarray(normal(22, 2, 6))}, jnp.asarray([0.6, 0.5])
    way = {"w": jnp.asarray(normal(23, 2, 6))}

    def total(step):
        moved = jax.tree.map(lambda x, y: x + step * y, stack, way)
        return jnp.sum(jnp.sin(method(moved, row + step * jnp.asarray([1, -2]))["w"]))

    step = 4e-3
    difference = (total(step) - total(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(0.0), difference, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", WITH_BASE)
def test_a_base_of_another_structure_is_named(method):
    with pytest.raises(trees.TreeMismatch, match="other"):
        method({"w": jnp.ones((2, 3))}, jnp.ones(2), base={"other": jnp.ones(3)})


@settings(max_examples=20, deadline=None)
@given(
    experts=hnp.arrays(
        np.float32,
        st.sampled_from([(2, 1), (2, 3), (2, 2, 2)]),
        elements=st.floats(-100, 100, width=32),
    ),
    share=st.floats(0, 1, width=32),
)
def test_no_merge_on_the_sphere_is_longer_than_its_longest_expert(experts, share):
    bound = max(np.linalg.norm(x) for x in experts.astype(np.float64))
    for method in (multislerp, karcher):
        merged = merge(method, experts, [1 - share, share])
        assert np.linalg.norm(merged) <= bound * (1 + 1e-4)
