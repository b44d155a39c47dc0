"""Robust merges: formulas, breakdown, and distances that do not cancel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusion_jax import trees
from fusion_jax.merging.robust import (
    coordinate_median,
    exchanges,
    norm_clipped_mean,
    trimmed_mean,
)
from fusion_jax.merging.robust_distances import (
    geometric_median,
    krum,
    krum_form,
)

SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 2)]
WITHOUT_BASE = [coordinate_median, trimmed_mean, geometric_median, krum]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def models(seed, num_experts):
    """A stack whose leaves have all shapes."""
    return {
        f"leaf_{i}": jnp.asarray(normal(seed + i, num_experts, *shape))
        for i, shape in enumerate(SHAPES)
    }


def flat(tree):
    """[K, D] float64 of a stack."""
    leaves = [np.asarray(x, np.float64) for x in trees.flatten(tree).values()]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def vector(tree):
    return flat(jax.tree.map(lambda x: x[None], tree))[0]


def merge(method, experts, row=None, **options):
    experts = jnp.asarray(experts, jnp.float32)
    row = jnp.ones(len(experts)) if row is None else jnp.asarray(row, jnp.float32)
    return np.asarray(method({"w": experts}, row, **options)["w"])


@pytest.mark.parametrize("num_experts", [1, 2, 5, 16, 17])
def test_the_median_is_the_middle_of_each_entry(num_experts):
    stack = models(1, num_experts)
    got = vector(coordinate_median(stack, jnp.ones(num_experts)))
    np.testing.assert_allclose(got, np.median(flat(stack), axis=0), rtol=1e-6)


@pytest.mark.parametrize("trim", [0.0, 0.2, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("num_experts", [1, 4, 5])
def test_the_trimmed_mean_drops_the_same_number_at_both_ends(num_experts, trim):
    stack = models(10, num_experts)
    ends = min(int(np.floor(trim * num_experts + 1e-9)), (num_experts - 1) // 2)
    ordered = np.sort(flat(stack), axis=0)[ends : num_experts - ends]
    got = vector(trimmed_mean(stack, jnp.ones(num_experts), trim=trim))
    np.testing.assert_allclose(got, ordered.mean(0), rtol=1e-5, atol=1e-6)


def test_a_fifth_of_five_is_one_and_of_four_none():
    assert merge(trimmed_mean, [[1.0], [2], [3], [4], [100]]) == 3
    assert merge(trimmed_mean, [[1.0], [2], [3], [100]]) == 26.5


@pytest.mark.parametrize("max_norm", [0.0, 1.5])
def test_long_deltas_are_clipped_to_the_norm_of_the_whole_model(max_norm):
    stack, row = models(20, 4), np.asarray([0.1, 0.2, 0.3, 0.4])
    stack = jax.tree.map(lambda x: x.at[1].multiply(50), stack)
    base = {name: jnp.asarray(0.1 * x[2]) for name, x in models(30, 4).items()}
    deltas = flat(stack) - vector(base)
    norms = np.linalg.norm(deltas, axis=1)
    limit = max_norm or np.median(norms)
    clipped = [min(1, limit / n) * d for n, d in zip(norms, deltas, strict=True)]
    expected = vector(base) + row @ np.stack(clipped)
    got = norm_clipped_mean(stack, jnp.asarray(row), base=base, max_norm=max_norm)
    np.testing.assert_allclose(vector(got), expected, rtol=1e-5, atol=1e-6)


def test_a_zero_delta_is_not_clipped_and_a_base_is_needed():
    base = {"w": jnp.asarray([1.0, 1.0])}
    merged = merge(norm_clipped_mean, np.ones((3, 2)), np.full(3, 1 / 3), base=base)
    np.testing.assert_allclose(merged, [1, 1])
    with pytest.raises(ValueError, match="norm_clipped_mean: needs base"):
        merge(norm_clipped_mean, np.ones((3, 2)))


def weiszfeld(points, row, steps, smoothing=1e-4):
    num = len(points)
    between = [np.sum((p - q) ** 2) for p in points for q in points]
    scale = np.sqrt(sum(between) / (num * (num - 1)))
    place = row @ points / row.sum()
    for _ in range(steps):
        far = np.linalg.norm(points - place, axis=1)
        weights = row / np.maximum(far, smoothing * scale)
        place = weights @ points / weights.sum()
    return place


@pytest.mark.parametrize("num_experts", [3, 5])
def test_the_geometric_median_equals_weiszfeld_on_vectors(num_experts):
    stack = models(40, num_experts)
    row = np.linspace(0.5, 1.0, num_experts)
    got = vector(geometric_median(stack, jnp.asarray(row)))
    expected = weiszfeld(flat(stack), row, 32)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_geometric_median_of_a_triangle_sees_its_sides_at_120_degrees():
    points = np.asarray([[0.0, 0.0], [1.0, 0.0], [0.2, 0.9]])
    place = merge(geometric_median, points).astype(np.float64)
    towards = points - place
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    np.testing.assert_allclose(towards.sum(0), 0, atol=1e-4)


def test_an_expert_that_is_the_median_is_found():
    # It outweighs the others together, so the iteration ends on it.
    points = normal(50, 3, 6)
    merged = merge(geometric_median, points, [3.0, 1.0, 1.0])
    np.testing.assert_allclose(merged, points[0], atol=2e-3)


def test_close_experts_far_from_zero_keep_their_distances():
    # Inner products of vectors of length 1e4 cannot see differences of 1e-1.
    points = np.full((4, 8), 4096.0) + np.round(64 * normal(51, 4, 8)) / 256
    expected = weiszfeld(points - 4096, np.ones(4), 32)
    got = merge(geometric_median, points) - 4096
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert np.abs(points - 4096 - expected).max() > 0.1


def krum_reference(points, f, m):
    num = len(points)
    scores = []
    for k in range(num):
        far = [np.sum((points[k] - points[j]) ** 2) for j in range(num) if j != k]
        scores.append((sum(sorted(far)[: num - f - 2]), sum(far)))
    best = sorted(range(num), key=lambda k: scores[k])[:m]
    return points[best].mean(0)


@pytest.mark.parametrize(
    ("num_experts", "f", "m"), [(3, 0, 1), (5, 1, 1), (7, 2, 3), (5, 0, 5)]
)
def test_krum_equals_the_scores_written_out(num_experts, f, m):
    stack = models(60, num_experts)
    got = krum(stack, jnp.ones(num_experts), num_byzantine=f, num_selected=m)
    np.testing.assert_allclose(
        vector(got), krum_reference(flat(stack), f, m), rtol=1e-5, atol=1e-6
    )


def test_krum_counts_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="needs at least 5 experts, 4 given"):
        merge(krum, normal(61, 4, 3), num_byzantine=1)
    with pytest.raises(ValueError, match="num_byzantine=-1"):
        merge(krum, normal(61, 4, 3), num_byzantine=-1)
    for m in (0, 5):
        with pytest.raises(ValueError, match=r"is not of 1\.\.4"):
            merge(krum, normal(62, 5, 3), num_byzantine=1, num_selected=m)
    assert krum_form().scope == "model"


@pytest.mark.parametrize("attack", [1e3, np.inf, np.nan])
def test_krum_never_takes_a_broken_expert(attack):
    points = normal(63, 5, 4)
    points[0] = attack
    merged = merge(krum, points, num_byzantine=1, num_selected=2)
    assert np.isfinite(merged).all()
    assert np.abs(merged).max() <= np.abs(points[1:]).max()


@pytest.mark.parametrize("method", [coordinate_median, trimmed_mean, geometric_median])
def test_one_broken_expert_of_five_moves_a_median_but_little(method):
    good = normal(64, 4, 6)
    outlier = np.full((1, 6), 1e4, np.float32)
    merged = merge(method, np.concatenate([outlier, good]))
    spread = np.linalg.norm(good - good.mean(0), axis=1).max()
    assert np.linalg.norm(merged - good.mean(0)) < 2 * spread


def test_one_broken_expert_moves_the_clipped_mean_by_its_share_of_a_norm():
    good = normal(65, 4, 6)
    outlier = np.full((1, 6), 1e4, np.float32)
    base = {"w": jnp.zeros(6)}
    merged = merge(
        norm_clipped_mean, np.concatenate([outlier, good]), np.full(5, 0.2), base=base
    )
    assert np.linalg.norm(merged) <= np.linalg.norm(good, axis=1).max()


@pytest.mark.parametrize("method", WITHOUT_BASE)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
def test_equal_constant_experts_return_themselves(method, value):
    for shape in SHAPES:
        expert = np.full(shape, value, np.float32)
        merged = merge(method, np.stack([expert] * 5), np.full(5, 0.2))
        np.testing.assert_allclose(merged, expert, rtol=1e-6)


@pytest.mark.parametrize("method", [coordinate_median, trimmed_mean, krum])
def test_coefficients_do_not_count(method):
    experts = normal(66, 5, 4)
    np.testing.assert_array_equal(
        merge(method, experts, [0.1, 5, 0, -1, 2]), merge(method, experts)
    )


def test_geometric_median_weights_of_one_expert_or_none():
    experts = normal(67, 4, 5)
    for k in range(4):
        one = merge(geometric_median, experts, np.eye(4)[k])
        np.testing.assert_array_equal(one, experts[k])
    np.testing.assert_allclose(
        merge(geometric_median, experts, np.zeros(4)),
        merge(geometric_median, experts),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("method", WITHOUT_BASE)
def test_scaled_experts_give_the_scaled_result(method, scale):
    experts = normal(68, 5, 6)
    np.testing.assert_allclose(
        merge(method, scale * experts), scale * merge(method, experts), rtol=1e-5
    )


@pytest.mark.parametrize("method", WITHOUT_BASE)
def test_dtype_is_kept(method):
    experts = {"w": jnp.asarray(normal(69, 5, 4), jnp.bfloat16)}
    assert method(experts, jnp.ones(5))["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("method", "name", "values"),
    [
        (trimmed_mean, "trim", [0.0, 0.2, 0.4, 0.5]),
        (geometric_median, "smoothing", [1e-4, 1e-2, 1.0]),
        (norm_clipped_mean, "max_norm", [0.0, 0.5, 100.0]),
    ],
)
def test_jit_of_vmap_over_each_number_equals_a_loop(method, name, values):
    experts, row = normal(70, 5, 4), jnp.linspace(0.1, 0.3, 5)
    extra = {"base": {"w": jnp.ones(4)}} if method is norm_clipped_mean else {}
    stack = {"w": jnp.asarray(experts)}
    many = jax.jit(jax.vmap(lambda x: method(stack, row, **{name: x}, **extra)["w"]))(
        jnp.asarray(values)
    )
    for value, one in zip(values, many, strict=True):
        np.testing.assert_allclose(
            one,
            merge(method, experts, row, **{name: value}, **extra),
            rtol=1e-5,
            atol=1e-6,
        )
    assert np.abs(many[0] - many[-1]).max() > 1e-6


@pytest.mark.parametrize("method", [geometric_median, norm_clipped_mean])
def test_jit_of_vmap_over_coefficients_equals_a_loop(method):
    experts, rows = normal(71, 4, 3, 2), jnp.asarray(np.abs(normal(72, 3, 4)))
    stack = {"w": jnp.asarray(experts)}
    extra = {"base": {"w": jnp.ones((3, 2))}} if method is norm_clipped_mean else {}
    many = jax.jit(jax.vmap(lambda row: method(stack, row, **extra)["w"]))(rows)
    for row, one in zip(rows, many, strict=True):
        np.testing.assert_allclose(
            one, merge(method, experts, row, **extra), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("method", [geometric_median, norm_clipped_mean])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-19, 1.0])
def test_gradients_are_finite_on_zero_tiny_and_equal_experts(method, scale):
    extra = {"base": {"w": jnp.zeros(5)}} if method is norm_clipped_mean else {}
    for experts in (np.ones((3, 5)), normal(73, 3, 5)):
        stack = {"w": jnp.asarray(scale * experts, jnp.float32)}
        found = jax.grad(
            lambda s, row: jnp.sum(method(s, row, **extra)["w"]), argnums=(0, 1)
        )(stack, jnp.asarray([0.2, 0.5, 0.3]))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_gradients_of_the_geometric_median_equal_differences():
    stack, row = {"w": jnp.asarray(normal(74, 4, 6))}, jnp.asarray([0.2, 0.3, 0.3, 0.2])
    way = {"w": jnp.asarray(normal(75, 4, 6))}

    def total(step):
        moved = jax.tree.map(lambda x, y: x + step * y, stack, way)
        shift = step * jnp.asarray([0.3, -0.2, 0.1, 0.2])
        return jnp.sum(jnp.sin(geometric_median(moved, row + shift)["w"]))

    step = 1e-2
    difference = (total(step) - total(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(0.0), difference, rtol=2e-3, atol=2e-3)


@settings(max_examples=20, deadline=None)
@given(
    experts=hnp.arrays(
        np.float32,
        st.sampled_from([(3, 1), (5, 3), (4, 2, 2)]),
        elements=st.floats(-100, 100, width=32),
    )
)
def test_every_entry_lies_between_the_experts(experts):
    low, high = experts.min(0), experts.max(0)
    for method in WITHOUT_BASE:
        merged = merge(method, experts)
        slack = 1e-4
        assert (merged >= low - slack).all()
        assert (merged <= high + slack).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 16, 17, 32, 40, 64])
def test_exchanges_sort_any_number_of_values(size):
    places = list(exchanges(size))
    # A network that sorts zeros and ones sorts anything (Knuth 5.3.4, theorem Z).
    rows = np.random.default_rng(size).integers(0, 2, (4000, size))
    if size <= 12:
        rows = np.array(list(itertools.product((0, 1), repeat=size))).reshape(-1, size)
    for i, j in places:
        low, high = rows[:, i].copy(), rows[:, j].copy()
        rows[:, i], rows[:, j] = np.minimum(low, high), np.maximum(low, high)
    assert (np.diff(rows, axis=1) >= 0).all()
    if size in (8, 32):
        assert len(places) == {8: 19, 32: 191}[size]


@pytest.mark.parametrize("count", [17, 40])
def test_a_median_of_many_is_that_of_numpy(count):
    values = np.random.default_rng(count).normal(size=(count, 50)).astype(np.float32)
    merged = coordinate_median({"x": jnp.asarray(values)}, jnp.ones(count))
    np.testing.assert_allclose(merged["x"], np.median(values, axis=0), rtol=1e-6)
