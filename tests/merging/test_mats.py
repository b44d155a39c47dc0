"""MaTS against a dense solve of its Kronecker system, and what it does not move."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.form import Block
from fusion_jax.merging.linear import task_arithmetic, weighted_average
from fusion_jax.merging.mats import mats, mats_form
from fusion_jax.merging.regmean import regmean
from tests.merging.task_vectors import assert_mapped_equals_a_loop

C: Any = np.asarray([0.5, 1.5, 1.0])


def gram(random, num_experts, size, samples=40):
    x = random.normal(size=(num_experts, samples, size))
    x *= np.linspace(0.7, 1.4, size)
    return jnp.asarray(np.einsum("kni,knj->kij", x, x) / samples, jnp.float32)


def problem(seed=0, num_experts=3, size=5, width=4, samples=40):
    random = np.random.default_rng(seed)
    kernels = random.normal(size=(num_experts, size, width))
    return (
        jnp.asarray(kernels, jnp.float32),
        gram(random, num_experts, size, samples),
        gram(random, num_experts, width, samples),
    )


def reference(kernels, inputs, outputs, c, alpha=1.0):
    """All in * out unknowns at once: rows of W laid end to end."""
    kernels = np.asarray(kernels, np.float64)
    _, size, width = kernels.shape
    left, right = np.zeros((size * width, size * width)), np.zeros(size * width)
    for w, g, o, weight in zip(kernels, inputs, outputs, c, strict=True):
        mixed = [
            alpha * np.asarray(x, np.float64)
            + (1 - alpha) * np.diag(np.diag(np.asarray(x, np.float64)))
            for x in (g, o)
        ]
        matrix = weight * np.kron(mixed[0], mixed[1].T)
        left += matrix
        right += matrix @ w.reshape(-1)
    return np.linalg.solve(left, right).reshape(size, width)


def merged(kernels, inputs, outputs, c, **options):
    statistics = {"inputs": {"w": inputs}, "outputs": {"w": outputs}}
    if "base" in options:
        options["base"] = {"w": options["base"]}
    return mats({"w": kernels}, c, statistics=statistics, **options)["w"]


@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("start", ["average", "task_arithmetic"])
def test_it_equals_the_dense_solve_in_float64(start, alpha):
    kernels, inputs, outputs = problem()
    found = merged(
        kernels, inputs, outputs, C, start=start, alpha=alpha, base=kernels[0] + 1
    )
    right = reference(kernels, inputs, outputs, C, alpha)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
    mean = weighted_average({"w": kernels}, C, normalize=True)["w"]
    assert np.abs(mean - right).max() > 0.05


def test_two_experts_with_one_input_give_the_mean_by_products_of_their_moments():
    # in = out = 1: w = sum_k c_k g_k o_k w_k / sum_k c_k g_k o_k.
    kernels = jnp.asarray([[[1.0]], [[3.0]]])
    inputs, outputs = jnp.asarray([[[2.0]], [[1.0]]]), jnp.asarray([[[3.0]], [[2.0]]])
    found = merged(kernels, inputs, outputs, jnp.asarray([0.5, 0.5]))
    np.testing.assert_allclose(found, [[(6 * 1 + 2 * 3) / 8]], rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_without_a_metric_of_outputs_it_is_regmean(alpha):
    kernels, inputs, outputs = problem(1)
    eye = jnp.broadcast_to(7 * jnp.eye(4), outputs.shape)
    found = merged(kernels, inputs, eye, C, alpha=alpha)
    other = regmean(
        {"w": kernels}, C, statistics={"w": inputs}, alpha=alpha, ridge=0.0
    )["w"]
    np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-5)


def test_in_float64_it_is_solved_to_float64():
    kernels, inputs, outputs = problem(2)
    with jax.enable_x64(True):
        wide = tuple(np.asarray(x, np.float64) for x in (kernels, inputs, outputs))
        block = Block(
            experts=jnp.asarray(wide[0]),
            base=None,
            coefficients=jnp.asarray(C),
            start=0,
            keys=None,
            valid=None,
            size=20,
            shape=(5, 4),
            name="w",
            statistics={"inputs": wide[1], "outputs": wide[2]},
        )
        found = mats_form().apply(block, {}, {"alpha": 0.9, "scale": 0.3})
        assert found.dtype == jnp.float64
    np.testing.assert_allclose(
        found, reference(wide[0], wide[1], wide[2], C, 0.9), rtol=1e-9, atol=1e-9
    )


def test_no_iterations_is_the_start_and_each_one_comes_nearer():
    kernels, inputs, outputs = problem()
    base = kernels[0] - 0.5
    mean = weighted_average({"w": kernels}, C, normalize=True)["w"]
    found = merged(kernels, inputs, outputs, C, iterations=0)
    np.testing.assert_allclose(found, mean, rtol=1e-6)
    start: dict[str, Any] = {"start": "task_arithmetic", "base": base}
    # Equal coefficients: the sum of task vectors, whatever the coefficients' sum is.
    found = merged(
        kernels, inputs, outputs, jnp.ones(3), iterations=0, scale=0.2, **start
    )
    summed = task_arithmetic({"w": kernels}, jnp.full(3, 0.2), base={"w": base})["w"]
    np.testing.assert_allclose(found, summed, rtol=1e-5, atol=1e-6)

    def energy(w):
        gaps = np.asarray(w, np.float64) - reference(kernels, inputs, outputs, C)
        return sum(
            c * np.sum(gaps * (np.asarray(g) @ gaps @ np.asarray(o)))
            for c, g, o in zip(C, inputs, outputs, strict=True)
        )

    for options in ({}, start):
        energies = [
            energy(merged(kernels, inputs, outputs, C, iterations=n, **options))
            for n in (0, 1, 2, 4, 8)
        ]
        assert energies == sorted(energies, reverse=True)
        assert energies[-1] < 1e-2 * energies[0]


def test_what_no_gram_sees_stays_at_the_start():
    # Two tokens and two gradients, the same for all experts: a system of rank 4 in 20
    # unknowns.
    random = np.random.default_rng(3)
    x, g = random.normal(size=(2, 5)), random.normal(size=(2, 4))
    kernels = random.normal(size=(3, 5, 4)).astype(np.float32)
    sizes = np.asarray([1.0, 2.0, 0.5])[:, None, None]
    base = random.normal(size=(5, 4)).astype(np.float32)
    found = merged(
        jnp.asarray(kernels),
        jnp.asarray(sizes * (x.T @ x), jnp.float32),
        jnp.asarray(np.stack([g.T @ g] * 3), jnp.float32),
        C,
        start="task_arithmetic",
        base=base,
    )
    shares = C / C.sum()
    start = base + 0.3 * 3 * np.einsum("k,kio->io", shares, kernels - base)
    # Proportional Grams: what they see is the mean by c times size.
    weights = C * sizes[:, 0, 0] / np.sum(C * sizes[:, 0, 0])
    mean = np.einsum("k,kio->io", weights, kernels)
    seen_in, seen_out = np.linalg.pinv(x) @ x, np.linalg.pinv(g) @ g
    right = start + seen_in @ (mean - start) @ seen_out
    np.testing.assert_allclose(found, right, atol=2e-5)


def test_grams_of_zeros_leave_the_start_and_one_expert_is_itself():
    kernels, inputs, outputs = problem()
    mean = weighted_average({"w": kernels}, C, normalize=True)["w"]
    for g, o in (
        (0 * inputs, outputs),
        (inputs, 0 * outputs),
        (0 * inputs, 0 * outputs),
    ):
        np.testing.assert_allclose(merged(kernels, g, o, C), mean, rtol=1e-6)
    alone = merged(kernels[:1], inputs[:1], outputs[:1], jnp.asarray([0.7]))
    np.testing.assert_array_equal(alone, kernels[0])


def test_equal_experts_and_one_hot_coefficients_return_the_expert():
    kernels, inputs, outputs = problem()
    same = jnp.stack([kernels[0]] * 3)
    np.testing.assert_allclose(
        merged(same, inputs, outputs, C), kernels[0], rtol=1e-6, atol=1e-6
    )
    for k in range(3):
        found = merged(kernels, inputs, outputs, jnp.eye(3)[k])
        np.testing.assert_array_equal(found, kernels[k])


@pytest.mark.parametrize("unit", [(1, 1e-16), (1e-20, 1e-18), (1e12, 1e-30), (1e20, 1)])
def test_the_unit_of_the_statistics_does_not_count(unit):
    kernels, inputs, outputs = problem()
    one = merged(kernels, inputs, outputs, C)
    other = merged(kernels, unit[0] * inputs, unit[1] * outputs, C)
    np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-5)


def test_small_factors_of_different_experts_do_not_underflow():
    # The products of the factors' sizes are 1e-30 for both.
    kernels, inputs, outputs = problem(num_experts=2)
    small = jnp.asarray([1e-30, 1.0])[:, None, None]
    found = merged(kernels, small * inputs, small[::-1] * outputs, jnp.ones(2))
    right = reference(kernels, inputs, outputs, [1, 1])
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


def test_tiny_differences_between_experts_are_merged_as_large_ones():
    kernels, inputs, outputs = problem()
    one = merged(kernels, inputs, outputs, C)
    tiny = merged(1e-30 * kernels, inputs, outputs, C)
    np.testing.assert_allclose(np.asarray(tiny) * 1e30, one, rtol=2e-5, atol=2e-5)


def test_statistics_that_are_not_finite_are_not_hidden():
    kernels, inputs, outputs = problem()
    for bad in (np.nan, np.inf):
        found = merged(kernels, inputs.at[1, 2, 2].set(bad), outputs, C)
        assert np.isnan(found).all()


def test_extended_grams_layouts_and_more_axes_give_the_same():
    kernels, inputs, outputs = problem(size=6, width=8)
    one = merged(kernels, inputs, outputs, C)
    more = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 7)), jnp.float32)
    extended = more.at[:, :6, :6].set(inputs)
    np.testing.assert_array_equal(merged(kernels, extended, outputs, C), one)
    for shape in [(3, 2, 4, 2), (6, 2, 4), (2, 3, 8)]:
        found = merged(kernels.reshape(3, *shape), inputs, outputs, C)
        np.testing.assert_allclose(found.reshape(6, 8), one, rtol=1e-5, atol=1e-5)
    for shape in [(8, 6), (2, 4, 6), (8, 3, 2)]:
        turned = jnp.swapaxes(kernels, 1, 2).reshape(3, *shape)
        for g in (inputs, extended):
            found = merged(turned, g, outputs, C, input_axis=-1)
            np.testing.assert_allclose(found.reshape(8, 6).T, one, rtol=1e-5, atol=1e-5)


def test_leaves_without_statistics_are_averaged_whatever_the_start():
    kernels, inputs, outputs = problem()
    stack = {"layer": {"kernel": kernels, "bias": kernels[:, 0]}}
    base = {"layer": {"kernel": kernels[0], "bias": kernels[1, 0]}}
    statistics = {
        "inputs": {"layer": {"kernel": inputs}},
        "outputs": {"layer/kernel": outputs},
    }
    for start in ("average", "task_arithmetic"):
        found = mats(stack, C, statistics=statistics, base=base, start=start)
        np.testing.assert_allclose(
            found["layer"]["bias"],
            np.einsum("k,kd->d", C / C.sum(), np.asarray(kernels)[:, 0]),
            rtol=1e-6,
            atol=1e-7,
        )
        np.testing.assert_allclose(
            found["layer"]["kernel"],
            reference(kernels, inputs, outputs, C),
            rtol=1e-5,
            atol=1e-5,
        )


def test_faults_of_statistics_are_all_named_at_once():
    kernels, inputs, outputs = problem()
    stack = {name: kernels for name in ("a", "b", "c", "d", "e")}
    statistics = {
        "inputs": {"a": inputs, "c": inputs[:2], "d": inputs, "gone": inputs},
        "outputs": {"b": outputs, "c": outputs, "d": outputs[:, :3, :3]},
    }
    with pytest.raises(ValueError, match=r"no Gram among 'outputs'") as caught:
        mats(stack, C, statistics=statistics)
    for said in (
        "a: no Gram among 'outputs'",
        "b: no Gram among 'inputs'",
        "c: Grams of shape (2, 5, 5) for 3 experts",
        "d: Grams of shape (3, 5, 5) and (3, 3, 3) do not fit a kernel of shape (5, 4)",
        "gone: no such leaf",
    ):
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="use weighted_average"):
        mats(stack, C, statistics={"inputs": {}, "outputs": {}})
    with pytest.raises(ValueError, match="missing or unknown: a, inputs, outputs"):
        mats(stack, C, statistics={"a": {"w": inputs}})


def test_options_out_of_range_are_refused():
    problem_of = problem()
    for options, said in (
        ({"alpha": 1.5}, r"alpha 1\.5"),
        ({"iterations": -1}, "-1 iterations"),
        ({"start": "zero"}, "'zero' is not one of average, task_arithmetic"),
        ({"start": "task_arithmetic"}, "mats: needs base="),
        ({"input_axis": 0}, "input_axis: 0"),
    ):
        with pytest.raises(ValueError, match=said):
            merged(*problem_of, C, **options)


def test_a_population_of_coefficients_and_alphas_equals_a_loop():
    kernels, inputs, outputs = problem()
    inputs = inputs.at[:, 2, :].set(0).at[:, :, 2].set(0)
    statistics = {"inputs": {"w": inputs}, "outputs": {"w": outputs}}
    base = {"w": kernels[1] - 1}
    assert_mapped_equals_a_loop(
        lambda row: mats(
            {"w": kernels},
            row[:3],
            statistics=statistics,
            alpha=row[3],
            scale=row[4],
            base=base,
            start="task_arithmetic",
        ),
        jnp.asarray([[0.2, 0.5, 0.3, 1.0, 0.3], [1, 0, 0, 0.5, 1], [1, 2, 3, 0, 0]]),
    )


def test_dtype_is_kept_and_reverse_mode_is_refused():
    kernels, inputs, outputs = problem()
    found = merged(kernels.astype(jnp.bfloat16), inputs, outputs, C)
    assert found.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="everse-mode"):
        jax.grad(lambda c: jnp.sum(merged(kernels, inputs, outputs, c)))(jnp.ones(3))


# A few shapes: each is compiled.
@settings(max_examples=20)
@given(
    st.sampled_from([(1, 1, 1), (2, 6, 3), (4, 3, 2), (3, 4, 4)]),
    st.integers(0, 99),
    st.integers(1, 12),
)
def test_shifts_and_permutations_hold_for_systems_of_any_rank(shape, seed, samples):
    num_experts, size, width = shape
    kernels, inputs, outputs = problem(seed, num_experts, size, width, samples)
    random = np.random.default_rng(seed)
    c = jnp.asarray(random.random(num_experts) + 0.1, jnp.float32)
    # Stopped before the rounding of a singular system shows.
    one = merged(kernels, inputs, outputs, c, iterations=3)
    shift = jnp.asarray(random.normal(size=(size, width)), jnp.float32)
    two = merged(kernels + shift, inputs, outputs, c, iterations=3)
    np.testing.assert_allclose(two, one + shift, rtol=1e-4, atol=1e-4)
    order = jnp.asarray(random.permutation(num_experts))
    two = merged(kernels[order], inputs[order], outputs[order], c[order], iterations=3)
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)
