"""RegMean: known answers, its identities, and systems that are hard to solve."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.form import Block
from fusion_jax.merging.linear import weighted_average
from fusion_jax.merging.regmean import regmean, regmean_form
from tests.merging.task_vectors import assert_mapped_equals_a_loop, assert_trees_close

# Column vectors: the kernels [in, 1] of the cases that public code gets wrong.
W = jnp.asarray([[[1.0], [3.0]], [[3.0], [5.0]]])
HALF = jnp.full(2, 0.5)
C: Any = np.asarray([0.5, 1.5, 1.0])


def problem(seed=0, num_experts=3, size=5, outputs=4):
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(num_experts, 40, size)) @ np.diag(
        np.linspace(0.5, 2, size)
    )
    grams = np.einsum("kni,knj->kij", inputs, inputs) / 40
    kernels = random.normal(size=(num_experts, size, outputs))
    return jnp.asarray(kernels, jnp.float32), jnp.asarray(grams, jnp.float32)


def reference(kernels, grams, c, alpha=0.9, ridge=1e-6):
    kernels, grams = np.asarray(kernels, np.float64), np.asarray(grams, np.float64)
    size = grams.shape[1]
    left, right = np.zeros((size, size)), np.zeros(kernels.shape[1:])
    for w, gram, weight in zip(kernels, grams, c, strict=True):
        mixed = alpha * gram + (1 - alpha) * np.diag(np.diag(gram))
        left += weight * mixed
        right += weight * mixed @ w
    r = ridge * np.trace(left) / size
    mean = np.einsum("k,kio->io", np.asarray(c), kernels) / np.sum(c)
    return np.linalg.solve(left + r * np.eye(size), right + r * mean)


def merged(kernels, grams, c, **options):
    one = regmean({"w": kernels}, c, statistics={"w": jnp.asarray(grams)}, **options)
    return np.asarray(one["w"])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
def test_it_equals_the_normal_equations_in_float64(alpha, ridge):
    kernels, grams = problem()
    np.testing.assert_allclose(
        merged(kernels, grams, C, alpha=alpha, ridge=ridge),
        reference(kernels, grams, C, alpha, ridge),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(1.0, [1, 3.66667]), (0.6, [1.26667, 3.93333]), (0.0, [1.66667, 4.33333])],
)
def test_two_small_grams_give_the_known_answer(alpha, expected):
    grams = [[[2.0, 1.0], [1.0, 1.0]], [[1.0, -1.0], [-1.0, 2.0]]]
    found = merged(W, grams, HALF, alpha=alpha)
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-5)


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
@pytest.mark.parametrize("alpha", [1.0, 0.9])
@pytest.mark.parametrize(
    "gram", [np.diag([1.0, 0.0]), [[1, 1], [1, 1 + 1e-7]], np.zeros((2, 2))]
)
def test_equal_grams_give_the_average_however_singular(gram, alpha, ridge):
    found = merged(W, np.stack([gram, gram]), HALF, alpha=alpha, ridge=ridge)
    np.testing.assert_allclose(found[:, 0], [2, 4], atol=1e-6)


def test_grams_of_real_tokens_alone_return_each_row_of_its_owner():
    # Expert 1 saw only feature 0, expert 2 only feature 1.
    found = merged(W, [np.diag([1.0, 0.0]), np.diag([0.0, 4.0])], HALF, alpha=1.0)
    np.testing.assert_allclose(found[:, 0], [1, 5], atol=1e-5)


def test_it_is_not_the_average_where_grams_differ_in_direction():
    kernels, grams = problem()
    mean = weighted_average({"w": kernels}, C, normalize=True)["w"]
    assert np.abs(merged(kernels, grams, C) - mean).max() > 0.05


def test_grams_that_reach_no_kernel_are_refused():
    kernels, grams = problem()
    with pytest.raises(ValueError, match="use weighted_average"):
        regmean({"w": kernels}, C, statistics={})
    with pytest.raises(ValueError, match=r"layer/w: no such leaf(.|\n)*w: Grams of"):
        regmean({"w": kernels}, C, statistics={"layer/w": grams, "w": grams[:, :2, :2]})
    with pytest.raises(ValueError, match="do not fit"):
        regmean({"w": kernels}, C, statistics={"w": grams[:2]})
    with pytest.raises(ValueError, match=r"alpha 1\.5"):
        regmean({"w": kernels}, C, statistics={"w": grams}, alpha=1.5)
    with pytest.raises(TypeError, match="grams"):
        regmean({"w": kernels}, C, grams={"w": grams})  # type: ignore[call-arg]


def test_one_expert_or_equal_experts_return_themselves():
    kernels, grams = problem()
    np.testing.assert_array_equal(
        merged(kernels[:1], grams[:1], jnp.asarray([0.7])), kernels[0]
    )
    same = jnp.stack([kernels[0]] * 3)
    np.testing.assert_allclose(merged(same, grams, C), kernels[0], rtol=1e-6)


def test_one_hot_coefficients_return_that_expert_bit_for_bit():
    kernels, grams = problem()
    for k in range(3):
        found = merged(kernels, grams, jnp.eye(3)[k])
        np.testing.assert_array_equal(found, kernels[k])


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_proportional_grams_give_the_mean_weighted_by_their_sizes(alpha):
    kernels, grams = problem()
    sizes = np.asarray([1.0, 4.0, 0.5])
    found = merged(kernels, sizes[:, None, None] * grams[0], C, alpha=alpha, ridge=0.0)
    weights = C * sizes / np.sum(C * sizes)
    mean = np.einsum("k,kio->io", weights, np.asarray(kernels))
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


def test_alpha_zero_is_a_mean_of_rows_weighted_by_the_diagonal():
    kernels, grams = problem()
    found = merged(kernels, grams, C, alpha=0.0, ridge=0.0)
    for i in range(kernels.shape[1]):
        weights = C * np.asarray(grams)[:, i, i]
        row = weights @ np.asarray(kernels)[:, i] / weights.sum()
        np.testing.assert_allclose(found[i], row, rtol=1e-5)


def test_multiples_of_weights_and_orders_of_experts_change_nothing():
    kernels, grams = problem()
    one = merged(kernels, grams, C)
    np.testing.assert_allclose(merged(kernels, grams, 7 * C), one, rtol=1e-5)
    order = np.asarray([2, 0, 1])
    found = merged(kernels[order], grams[order], C[order])
    np.testing.assert_allclose(found, one, rtol=1e-5, atol=1e-6)


def test_the_derivative_of_the_objective_is_zero():
    kernels, grams = problem()
    found = merged(kernels, grams, C, alpha=1.0, ridge=0.0)
    slopes = sum(
        c * np.asarray(g, np.float64) @ (found - np.asarray(w, np.float64))
        for c, g, w in zip(C, grams, kernels, strict=True)
    )
    np.testing.assert_allclose(slopes, 0, atol=1e-5)


def test_it_fits_the_outputs_of_all_experts_better_than_the_mean():
    random = np.random.default_rng(4)
    shape = np.diag(np.logspace(-1, 1, 6))
    inputs = [random.normal(size=(50, 6)) @ np.roll(shape, k, 1) for k in range(3)]
    kernels, _ = problem(size=6)
    grams = jnp.asarray(np.stack([x.T @ x for x in inputs]), jnp.float32)

    def loss(w):
        return sum(
            np.sum((x @ (w - np.asarray(own))) ** 2)
            for x, own in zip(inputs, kernels, strict=True)
        )

    found = merged(kernels, grams, jnp.ones(3), alpha=1.0)
    assert loss(found) < 0.5 * loss(np.mean(np.asarray(kernels), axis=0))


def test_a_feature_nobody_used_is_averaged_bit_for_bit():
    kernels, grams = problem()
    grams = grams.at[:, 2, :].set(0).at[:, :, 2].set(0)
    mean = weighted_average({"w": kernels}, C, normalize=True)["w"]
    for options in ({}, {"ridge": 0.0}, {"alpha": 1.0, "ridge": 0.0}):
        found = merged(kernels, grams, C, **options)
        np.testing.assert_array_equal(found[2], mean[2])
        assert np.isfinite(found).all()


def conditioned(number, seed=3, size=12):
    """Three Grams whose sum has about this condition number, in float64."""
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.normal(size=(size, size)))
    values = np.logspace(0, -np.log10(number), size)
    grams = np.stack(
        [(basis * values * random.uniform(0.5, 2, size)) @ basis.T for _ in range(3)]
    )
    return random.normal(size=(3, size, 4)), (grams + np.swapaxes(grams, 1, 2)) / 2


@pytest.mark.parametrize("number", [1e1, 1e2, 1e3, 1e4])
def test_in_float32_the_error_is_the_condition_number_times_the_rounding(number):
    kernels, grams = conditioned(number)
    kernels = kernels.astype(np.float32)
    right = reference(kernels, grams.astype(np.float32), C, 1.0, 0.0)
    found = merged(
        jnp.asarray(kernels), grams.astype(np.float32), C, alpha=1.0, ridge=0.0
    )
    error = np.linalg.norm(found - right) / np.linalg.norm(right)
    assert error < 2e-7 * number


@pytest.mark.parametrize("number", [1e2, 1e5, 1e8])
def test_in_float64_a_condition_number_of_1e8_is_solved_to_1e_6(number):
    kernels, grams = conditioned(number)
    right = reference(kernels, grams, C, 1.0, 0.0)
    with jax.enable_x64(True):
        block = Block(
            experts=jnp.asarray(kernels),
            base=None,
            coefficients=jnp.asarray(C),
            start=0,
            keys=None,
            valid=None,
            size=kernels[0].size,
            shape=kernels.shape[1:],
            name="w",
            statistics=jnp.asarray(grams),
        )
        found = regmean_form().apply(block, {}, {"alpha": 1.0, "ridge": 0.0})
        assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-9, 1e-6])
@pytest.mark.parametrize("size", [8, 40])
def test_directions_that_no_token_has_stay_at_the_mean(size, ridge):
    # Three tokens for both experts, and no zero on the diagonal: singular to rounding.
    random = np.random.default_rng(size)
    inputs = random.normal(size=(3, size))
    gram = inputs.T @ inputs
    kernels = random.normal(size=(2, size, 2)).astype(np.float32)
    found = merged(
        jnp.asarray(kernels), np.stack([gram, 3 * gram]), HALF, alpha=1.0, ridge=ridge
    )
    # Seen directions weigh the experts 1 to 3.
    seen = np.linalg.pinv(inputs) @ inputs
    right = kernels.mean(axis=0) + seen @ (kernels[1] - kernels[0]) / 4
    # The rounding of A over the ridge that hides it: eps * n / eps^1/2, as no
    # eigenvalue is above n means of the diagonal.
    np.testing.assert_allclose(
        found, right, atol=size * np.finfo(np.float32).eps ** 0.5
    )


def test_leaves_without_a_gram_are_averaged_and_both_layouts_agree():
    kernels, grams = problem()
    stack = {"layer": {"kernel": kernels, "bias": kernels[:, 0]}}
    flax = regmean(stack, C, statistics={"layer": {"kernel": grams}})
    np.testing.assert_allclose(
        flax["layer"]["bias"],
        np.einsum("k,kd->d", C / C.sum(), np.asarray(kernels)[:, 0]),
        rtol=1e-6,
        atol=1e-7,
    )
    torch = regmean(
        {"layer/weight": jnp.swapaxes(kernels, 1, 2)},
        C,
        statistics={"layer/weight": grams},
        input_axis=-1,
    )["layer"]["weight"]
    np.testing.assert_allclose(torch.T, flax["layer"]["kernel"], rtol=1e-5, atol=1e-6)


def test_kernels_of_more_axes_are_matrices_from_all_inputs_to_all_outputs():
    kernels, grams = problem(size=6, outputs=8)
    flat = merged(kernels, grams, C)
    for shape in [(3, 2, 4, 2), (6, 2, 4), (2, 3, 8)]:
        found = merged(kernels.reshape(3, *shape), grams, C)
        np.testing.assert_allclose(found.reshape(6, 8), flat, rtol=1e-5, atol=1e-6)
    turned = jnp.swapaxes(kernels, 1, 2).reshape(3, 2, 4, 3, 2)
    found = merged(turned, grams, C, input_axis=-1)
    np.testing.assert_allclose(found.reshape(8, 6).T, flat, rtol=1e-5, atol=1e-6)


def test_dtype_is_kept_and_the_unit_of_grams_does_not_count():
    kernels, grams = problem()
    one = merged(kernels, grams, C)
    np.testing.assert_allclose(merged(kernels, 1e-20 * grams, C), one, rtol=1e-4)
    np.testing.assert_allclose(merged(kernels, 1e20 * grams, C), one, rtol=1e-4)
    assert merged(kernels.astype(jnp.bfloat16), grams, C).dtype == jnp.bfloat16


def test_population_of_coefficients_alpha_and_ridge_equals_a_loop():
    kernels, grams = problem()
    grams = grams.at[:, 2, :].set(0).at[:, :, 2].set(0)
    assert_mapped_equals_a_loop(
        lambda row: regmean(
            {"w": kernels},
            row[:3],
            statistics={"w": grams},
            alpha=row[3],
            ridge=row[4],
        ),
        jnp.asarray([[0.2, 0.5, 0.3, 1.0, 0.0], [1, 0, 0, 0.5, 1e-3], [1, 2, 3, 0, 1]]),
    )


def test_gradients_equal_finite_differences_and_are_finite_on_dead_systems():
    kernels, grams = problem()

    def total(c, x, g):
        return jnp.sum(jnp.sin(regmean({"w": x}, c, statistics={"w": g})["w"]))

    row, direction = jnp.asarray(C, jnp.float32), jnp.asarray([0.3, -0.2, 0.5])
    by_c, by_x = jax.grad(total, argnums=(0, 1))(row, kernels, grams)
    step = 1e-2
    difference = total(row + step * direction, kernels, grams) - total(
        row - step * direction, kernels, grams
    )
    np.testing.assert_allclose(by_c @ direction, difference / (2 * step), rtol=5e-3)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=kernels.shape))
    difference = total(row, kernels + step * noise, grams) - total(
        row, kernels - step * noise, grams
    )
    np.testing.assert_allclose(
        jnp.sum(by_x * noise), difference / (2 * step), rtol=5e-3
    )
    for g in (0 * grams, grams.at[:, 2, :].set(0).at[:, :, 2].set(0)):
        for found in jax.grad(total, argnums=(0, 1))(row, 0 * kernels, g):
            assert np.isfinite(found).all()


# A few shapes: each is compiled.
@settings(max_examples=20)
@given(st.sampled_from([(1, 1, 1), (2, 6, 3), (4, 3, 2)]), st.integers(0, 99))
def test_a_tree_added_to_all_experts_is_added_to_the_result(shape, seed):
    k, size, outputs = shape
    random = np.random.default_rng(seed)
    kernels = jnp.asarray(random.normal(size=(k, size, outputs)), jnp.float32)
    x = random.normal(size=(k, 8, size))
    grams = jnp.asarray(np.einsum("kni,knj->kij", x, x), jnp.float32)
    shift = jnp.asarray(random.normal(size=(size, outputs)), jnp.float32)
    c = jnp.asarray(random.random(k) + 0.1, jnp.float32)
    one = regmean({"w": kernels}, c, statistics={"w": grams})
    two = regmean({"w": kernels + shift}, c, statistics={"w": grams})
    assert_trees_close(two, {"w": one["w"] + shift}, rtol=1e-4, atol=1e-4)


def extended_problem(seed=2, num_experts=3, size=6, outputs=4):
    """(kernels, biases, Grams of [x; 1]); the inputs have means."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(num_experts, 40, size)) + random.normal(
        size=(num_experts, 1, size)
    )
    inputs = np.concatenate([inputs, np.ones((num_experts, 40, 1))], axis=2)
    grams = np.einsum("kni,knj->kij", inputs, inputs) / 40
    kernels = random.normal(size=(num_experts, size, outputs))
    biases = random.normal(size=(num_experts, outputs))
    return (*(jnp.asarray(x, jnp.float32) for x in (kernels, biases, grams)),)


def test_extended_grams_are_trimmed_where_only_the_kernel_is_solved():
    kernels, _, grams = extended_problem()
    one = merged(kernels, grams, C)
    np.testing.assert_array_equal(one, merged(kernels, grams[:, :-1, :-1], C))
    turned = merged(jnp.swapaxes(kernels, 1, 2), grams, C, input_axis=-1)
    np.testing.assert_allclose(turned.T, one, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="do not fit"):
        merged(kernels[:, :-1], grams, C)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(
    "kernel, bias", [("x/kernel", "x/bias"), ("x.weight", "x.bias"), ("kernel", "bias")]
)
def test_kernel_and_bias_together_equal_the_normal_equations(kernel, bias, alpha):
    kernels, biases, grams = extended_problem()
    joint = jnp.concatenate([kernels, biases[:, None]], axis=1)
    right = reference(joint, grams, C, alpha)
    for axis in (-2, -1):
        x = kernels if axis == -2 else jnp.swapaxes(kernels, 1, 2)
        found = regmean(
            {kernel: x, bias: biases},
            C,
            statistics={kernel: grams},
            alpha=alpha,
            input_axis=axis,
            biases=True,
        )
        names = [n.split("/") for n in (kernel, bias)]
        one, last = (found[n[0]] if len(n) == 1 else found[n[0]][n[1]] for n in names)
        one = one if axis == -2 else one.T
        np.testing.assert_allclose(one, right[:-1], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(last, right[-1], rtol=2e-4, atol=2e-5)


def test_only_layers_with_extended_grams_take_their_biases_along():
    kernels, biases, grams = extended_problem()
    layer = {"kernel": kernels, "bias": biases}
    stack = {"a": layer, "b": layer, "c": layer, "d": {"kernel": kernels}}
    statistics = {
        "a/kernel": grams,
        "b/kernel": grams[:, :-1, :-1],
        "d/kernel": grams,
    }
    found = regmean(stack, C, statistics=statistics, biases=True)
    assert list(found) == ["a", "b", "c", "d"] and list(found["a"]) == [*layer]
    mean = weighted_average({"w": biases}, C, normalize=True)["w"]
    assert np.abs(found["a"]["bias"] - mean).max() > 0.01
    for other in "bc":
        np.testing.assert_allclose(found[other]["bias"], mean, rtol=1e-6)
    np.testing.assert_array_equal(found["b"]["kernel"], found["d"]["kernel"])
    assert np.abs(found["a"]["kernel"] - found["b"]["kernel"]).max() > 0.01
    # Rules for coefficients of groups reach the joint leaf by its kernel.
    rows = jnp.stack([jnp.asarray(C, jnp.float32), jnp.eye(3)[1]])
    groups = [("a/kernel", 1), (".*", 0)]
    found = regmean(stack, rows, statistics=statistics, biases=True, groups=groups)
    np.testing.assert_array_equal(found["a"]["kernel"], kernels[1])
    np.testing.assert_array_equal(found["a"]["bias"], biases[1])


def test_biases_that_no_extended_gram_reaches_are_refused():
    kernels, biases, grams = extended_problem()
    for stack, gram in [
        ({"x": {"kernel": kernels, "bias": biases}}, grams[:, :-1, :-1]),
        ({"x": {"kernel": kernels}}, grams),
    ]:
        with pytest.raises(ValueError, match="biases=True"):
            regmean(stack, C, statistics={"x/kernel": gram}, biases=True)


def test_joint_leaves_keep_dtypes_shapes_and_the_identities_of_the_merge():
    kernels, biases, grams = extended_problem()
    stack = {
        "kernel": kernels.reshape(3, 2, 3, 2, 2).astype(jnp.bfloat16),
        "bias": biases.reshape(3, 2, 2),
    }

    @jax.jit
    def joint(stack, c):
        return regmean(stack, c, statistics={"kernel": grams}, biases=True)

    found = joint(stack, jnp.asarray(C, jnp.float32))
    assert found["kernel"].dtype == jnp.bfloat16 and found["kernel"].shape == (
        2,
        3,
        2,
        2,
    )
    assert found["bias"].dtype == jnp.float32 and found["bias"].shape == (2, 2)
    for k in range(3):
        one = joint(stack, jnp.eye(3)[k])
        np.testing.assert_array_equal(one["bias"], stack["bias"][k])
        np.testing.assert_array_equal(one["kernel"], stack["kernel"][k])
    same = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), stack)
    one = joint(same, jnp.asarray(C, jnp.float32))
    np.testing.assert_allclose(one["bias"], stack["bias"][0], rtol=1e-6)
