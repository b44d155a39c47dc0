"""The host's regression of one layer against dense least squares in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.host_means import shares, weighted_mean
from fusion_jax.merging.regmean import regmean
from fusion_jax.merging.regression import LayerSums, regress_layer

C = np.asarray([0.5, 1.5, 1.0])


def problem(seed=0, num_experts=3, size=6, outputs=4, tokens=40):
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(num_experts, tokens, size)) + random.normal(
        size=(num_experts, 1, size)
    )
    kernels = random.normal(size=(num_experts, size, outputs))
    return inputs, kernels, random.normal(size=(num_experts, outputs))


def plain(inputs):
    return np.einsum("kni,knj->kij", inputs, inputs) / inputs.shape[1]


def extended(inputs):
    return plain(np.concatenate([inputs, np.ones((*inputs.shape[:2], 1))], axis=2))


def conditioned(number, seed=3, size=12, outputs=4):
    """Three Grams whose sum has about this condition number."""
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.normal(size=(size, size)))
    values = np.logspace(0, -np.log10(number), size)
    grams = [
        (basis * values * random.uniform(0.5, 2, size)) @ basis.T for _ in range(3)
    ]
    grams = np.stack([(g + g.T) / 2 for g in grams])
    return random.normal(size=(3, size, outputs)), grams


def mixed(gram, alpha):
    return alpha * gram + (1 - alpha) * np.diag(np.diag(gram))


def reference(kernels, grams, c, alpha=1.0, ridge=0.0):
    """Stacked square roots and targets, and numpy's least squares."""
    c = np.asarray(c) / np.sum(c)
    size = grams.shape[1]
    mean = np.einsum("k,kio->io", c, kernels)
    rows, targets = [], []
    total = 0.0
    for weight, gram, kernel in zip(c, grams, kernels, strict=True):
        values, vectors = np.linalg.eigh(weight * mixed(gram, alpha))
        root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        rows.append(root)
        targets.append(root @ kernel)
        total += weight * np.trace(gram)
    root = np.sqrt(ridge * total / size) * np.eye(size)
    rows, targets = [*rows, root], [*targets, root @ mean]
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]


def solve(kernels, grams, c=C, biases=None, **options):
    options = {"alpha": 1.0, "ridge": 0.0, **options}
    return regress_layer(list(kernels), biases, list(grams), c, **options)


def objective(found, kernels, grams, c, alpha):
    c = np.asarray(c) / np.sum(c)
    return sum(
        w * np.trace((found - k).T @ mixed(g, alpha) @ (found - k))
        for w, g, k in zip(c, grams, kernels, strict=True)
    )


@pytest.mark.parametrize("number", [1e1, 1e4, 1e8])
def test_it_equals_dense_least_squares_to_1e_6_up_to_a_condition_of_1e8(number):
    kernels, grams = conditioned(number)
    found, _, solved = solve(kernels, grams)
    right = reference(kernels, grams, C)
    assert np.linalg.norm(found - right) < 1e-6 * np.linalg.norm(right)
    assert solved.how == "cholesky"
    # An estimate in the 1-norm of what numpy says in the 2-norm.
    system = np.einsum("k,kij->ij", C, grams)
    true = np.linalg.cond(system)
    assert true / 15 < solved.condition < 15 * true


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
def test_one_set_of_sums_serves_every_alpha_and_ridge(alpha, ridge):
    inputs, kernels, _ = problem()
    grams, c = plain(inputs), C / C.sum()
    mean = np.einsum("k,kio->io", c, kernels)
    sums = LayerSums(6, 4)
    for weight, gram, kernel in zip(c, grams, kernels, strict=True):
        sums.add(weight, gram, kernel - mean)
    sums.solve(alpha=0.5, ridge=0.3)  # leaves the sums as they are
    solved = sums.solve(alpha=alpha, ridge=ridge)
    right = reference(kernels, grams, C, alpha, ridge)
    np.testing.assert_allclose(mean + solved.kernel, right, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        solved.loss, objective(right, kernels, grams, C, alpha), rtol=1e-9
    )


def test_linear_data_of_one_kernel_gives_that_kernel_back():
    # Each expert was fitted on inputs of its own half of the features.
    random = np.random.default_rng(1)
    truth = random.normal(size=(6, 3))
    kernels, grams = [], []
    for k in range(2):
        inputs = np.zeros((30, 6))
        inputs[:, 3 * k : 3 * k + 3] = random.normal(size=(30, 3))
        own = random.normal(size=(6, 3))
        own[3 * k : 3 * k + 3] = truth[3 * k : 3 * k + 3]
        kernels.append(own)
        grams.append(inputs.T @ inputs / 30)
    found, _, solved = solve(kernels, grams, [1, 2])
    np.testing.assert_allclose(found, truth, rtol=1e-12)
    assert solved.loss < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_experts_return_themselves_bit_for_bit(dtype):
    inputs, kernels, biases = problem()
    own, bias = kernels[0].astype(dtype), biases[0].astype(dtype)
    for joint in (False, True):
        found, middle, solved = solve(
            [own] * 3, extended(inputs), biases=[bias] * 3, bias=joint, ridge=1e-6
        )
        np.testing.assert_array_equal(found, own)
        np.testing.assert_array_equal(middle, bias)
        assert solved.loss == 0


def test_one_hot_coefficients_return_that_expert_bit_for_bit():
    inputs, kernels, _ = problem()
    for k in range(3):
        found, _, _ = solve(kernels, plain(inputs), np.eye(3)[k], alpha=0.9)
        np.testing.assert_array_equal(found, kernels[k])


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_isotropic_grams_give_the_average_and_proportional_ones_the_weighted_mean(
    alpha,
):
    inputs, kernels, _ = problem()
    mean = np.einsum("k,kio->io", C / C.sum(), kernels)
    found, _, _ = solve(kernels, [2 * np.eye(6)] * 3, alpha=alpha)
    np.testing.assert_allclose(found, mean, rtol=1e-12, atol=1e-14)
    sizes = np.asarray([1.0, 4.0, 0.5])
    found, _, _ = solve(kernels, sizes[:, None, None] * plain(inputs)[0], alpha=alpha)
    weights = C * sizes / np.sum(C * sizes)
    np.testing.assert_allclose(
        found, np.einsum("k,kio->io", weights, kernels), rtol=1e-9, atol=1e-12
    )


def test_alpha_zero_weighs_rows_by_the_diagonal():
    inputs, kernels, _ = problem()
    grams = plain(inputs)
    weights = C[:, None] * np.einsum("kii->ki", grams)
    right = np.einsum("ki,kio->io", weights / weights.sum(axis=0), kernels)
    found, _, _ = solve(kernels, grams, alpha=0.0)
    np.testing.assert_allclose(found, right, rtol=1e-12)


def test_it_is_not_the_average_where_grams_differ_in_direction():
    inputs, kernels, _ = problem()
    found, _, solved = solve(kernels, plain(inputs), alpha=0.9)
    mean = np.einsum("k,kio->io", C / C.sum(), kernels)
    assert np.abs(found - mean).max() > 0.05
    assert solved.loss < objective(mean, kernels, plain(inputs), C, 0.9)


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(0, 999),
)
def test_scale_order_and_the_reference_hold_for_all_shapes(k, size, outputs, alpha, s):
    inputs, kernels, _ = problem(s, k, size, outputs)
    grams = plain(inputs)
    c = np.random.default_rng(s).random(k) + 0.1
    options = {"alpha": alpha, "ridge": 1e-3}
    found, _, _ = solve(kernels, grams, c, **options)
    right = reference(kernels, grams, c, **options)
    np.testing.assert_allclose(found, right, rtol=1e-7, atol=1e-9)
    scaled, _, _ = solve(kernels, 1e30 * grams, 7 * c, **options)
    np.testing.assert_allclose(scaled, found, rtol=1e-7, atol=1e-9)
    order = np.random.default_rng(s).permutation(k)
    turned, _, _ = solve(kernels[order], grams[order], c[order], **options)
    np.testing.assert_allclose(turned, found, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_inputs_that_were_never_active_stay_at_the_mean_exactly(ridge):
    inputs, kernels, _ = problem()
    inputs[:, :, 2] = 0
    found, _, solved = solve(kernels, plain(inputs), ridge=ridge)
    mean = weighted_mean(kernels, C / C.sum())
    np.testing.assert_array_equal(found[2], mean[2])
    assert solved.dead == 1 and solved.how == "cholesky"
    assert np.abs(found - mean)[[0, 1, 3, 4, 5]].min() > 0
    found, _, solved = solve(kernels, np.zeros((3, 6, 6)), ridge=ridge)
    np.testing.assert_array_equal(found, mean)
    assert solved.dead == 6 and solved.loss == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [8, 40])
def test_a_singular_sum_without_ridge_is_iterated_from_the_mean(size, dtype):
    # Three tokens for all experts: most directions are seen by nobody.
    random = np.random.default_rng(size)
    inputs = random.normal(size=(3, size)) * np.linspace(0.5, 2, size)
    gram = (inputs.T @ inputs).astype(dtype)
    grams = np.stack([gram, 3 * gram])
    kernels = random.normal(size=(2, size, 2))
    found, _, solved = solve(kernels, grams, [1, 1])
    assert solved.how == "conjugate gradient" and solved.condition == np.inf
    # Seen directions weigh the experts 1 to 3. Of all such kernels this is the one
    # nearest to the mean, rows weighted by the diagonal of the Grams.
    scale = np.sqrt(np.diag(inputs.T @ inputs))
    seen = np.linalg.pinv(inputs / scale) @ (inputs / scale)
    move = (scale[:, None] * (kernels[1] - kernels[0])) / 4
    right = kernels.mean(axis=0) + (seen @ move) / scale[:, None]
    tolerance = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(found, right, atol=tolerance * 10)
    residual = inputs @ (found - right)
    assert np.linalg.norm(residual) < 10 * tolerance * np.linalg.norm(inputs @ right)
    np.testing.assert_allclose(
        solved.loss, objective(right, kernels, grams, [1, 1], 1.0), rtol=1e-4
    )


def test_a_ridge_makes_a_singular_sum_regular_and_it_is_the_one_given():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(2, 3, 9))
    kernels = random.normal(size=(2, 9, 2))
    found, _, solved = solve(kernels, plain(inputs), [1, 1], ridge=1e-4)
    assert solved.how == "cholesky"
    right = reference(kernels, plain(inputs), [1, 1], 1.0, 1e-4)
    np.testing.assert_allclose(found, right, rtol=1e-7, atol=1e-9)


def test_iterations_agree_with_the_factorisation_where_both_can(monkeypatch):
    inputs, kernels, _ = problem()
    right, _, by_factor = solve(kernels, plain(inputs), alpha=0.7, ridge=1e-2)
    monkeypatch.setattr(
        "fusion_jax.merging.semidefinite._factorised", lambda *_, **__: None
    )
    found, _, solved = solve(kernels, plain(inputs), alpha=0.7, ridge=1e-2)
    assert solved.how == "conjugate gradient"
    np.testing.assert_allclose(found, right, rtol=1e-9)
    np.testing.assert_allclose(solved.loss, by_factor.loss, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_kernel_and_bias_together_are_a_regression_on_one_more_input(alpha):
    inputs, kernels, biases = problem()
    grams = extended(inputs)
    options = {"alpha": alpha, "ridge": 1e-3}
    kernel, bias, solved = solve(kernels, grams, biases=biases, bias=True, **options)
    both = np.concatenate([kernels, biases[:, None]], axis=1)
    right = reference(both, grams, C, **options)
    np.testing.assert_allclose(kernel, right[:-1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(bias, right[-1], rtol=1e-9, atol=1e-12)
    assert solved.dead == 0
    # It fits the outputs better than a kernel beside an averaged bias.
    apart, mean, _ = solve(kernels, grams, biases=biases, **options)
    np.testing.assert_allclose(mean, weighted_mean(biases, C / C.sum()))
    one = np.concatenate([kernel, bias[None]])
    two = np.concatenate([apart, mean[None]])
    assert objective(one, both, grams, C, alpha) < objective(two, both, grams, C, alpha)


def test_extended_grams_are_trimmed_where_the_bias_is_not_solved():
    inputs, kernels, _ = problem()
    one, _, _ = solve(kernels, extended(inputs), ridge=1e-3)
    two, _, _ = solve(kernels, plain(inputs), ridge=1e-3)
    np.testing.assert_array_equal(one, two)


def test_the_state_does_not_grow_with_the_number_of_experts():
    inputs, kernels, _ = problem(num_experts=5)
    sums = LayerSums(6, 4)
    before = sums.nbytes
    assert before == 8 * (36 + 24 + 24)
    for gram, kernel in zip(plain(inputs), kernels, strict=True):
        sums.add(0.2, gram, kernel)
        held = [x for x in vars(sums).values() if isinstance(x, np.ndarray)]
        assert sum(x.nbytes for x in held) == sums.nbytes == before


def test_experts_are_read_one_at_a_time_and_grams_once():
    inputs, kernels, _ = problem()
    read = []

    def lazily(kind, array, k):
        return lambda: (read.append((kind, k)), array[k])[1]

    found, _, _ = regress_layer(
        [lazily("kernel", kernels, k) for k in range(3)],
        None,
        (lazily("gram", plain(inputs), k) for k in range(3)),
        C,
    )
    again, _, _ = regress_layer(list(kernels), None, list(plain(inputs)), C)
    np.testing.assert_array_equal(found, again)
    pairs = [(kind, k) for k in range(3) for kind in ("kernel", "gram")]
    assert read[-6:] == pairs and len(read) == 9


def test_it_agrees_with_the_merge_in_memory_to_float32():
    inputs, kernels, biases = problem()
    kernels, biases = kernels.astype(np.float32), biases.astype(np.float32)
    grams = extended(inputs).astype(np.float32)
    for joint in (False, True):
        kernel, bias, _ = solve(
            kernels, grams, biases=biases, bias=joint, alpha=0.9, ridge=1e-6
        )
        merged = regmean(
            {"x": {"kernel": kernels, "bias": biases}},
            C,
            statistics={"x/kernel": grams},
            biases=joint,
        )["x"]
        np.testing.assert_allclose(merged["kernel"], kernel, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(merged["bias"], bias, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused_and_all_of_it_is_named():
    sums = LayerSums(3, 2)
    with pytest.raises(
        ValueError, match=r"weight -1(.|\n)*Gram is \(2, 2\)(.|\n)*kernel is \(2, 3\)"
    ):
        sums.add(-1, np.eye(2), np.zeros((2, 3)))
    bad = np.eye(3)
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match="Gram holds numbers that are not finite"):
        sums.add(1, bad, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="kernel holds numbers that are not finite"):
        sums.add(1, np.eye(3), np.full((3, 2), np.inf))
    with pytest.raises(ValueError, match="negative diagonal"):
        sums.add(1, -np.eye(3), np.zeros((3, 2)))
    assert not sums.solve(alpha=1.0, ridge=0.0).kernel.any()
    for options in ({"alpha": 1.1, "ridge": 0}, {"alpha": 1, "ridge": -1e-9}):
        with pytest.raises(ValueError, match=r"alpha 1\.1|ridge -1e-09"):
            sums.solve(**options)
    with pytest.raises(ValueError, match=r"\(3, 3\), \(4, 4\) is needed; no bias"):
        LayerSums(3, 2, bias=True).add(1, np.eye(3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="has no bias"):
        solve(np.zeros((3, 3, 2)), [np.eye(3)] * 3, bias=True)
    for row in ([1, -1, 1], [0, 0, 0], [1, np.nan, 1], [1, 1]):
        with pytest.raises(ValueError, match="coefficients"):
            shares(row, 3)
    with pytest.raises(ValueError, match=r"expert 1 has shape \(2, 2\)"):
        weighted_mean([np.zeros((3, 2)), np.zeros((2, 2))], np.asarray([0.6, 0.4]))
