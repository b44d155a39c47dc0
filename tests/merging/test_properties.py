"""Every merge keeps the properties that its record promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import MERGES, stack, trees

RANDOM = np.random.default_rng(0)
NAMES = sorted(MERGES)


def tree(dtype=np.float32, scale=1.0):
    return {
        "encoder": {
            "layer_0": {
                "kernel": jnp.asarray(scale * RANDOM.normal(size=(3, 4)), dtype)
            },
            "layer_1": {"bias": jnp.asarray(scale * RANDOM.normal(size=4), dtype)},
        },
        "head": {"scale": jnp.asarray(scale * RANDOM.normal(), dtype)},
    }


def call(name, experts, coefficients, base):
    record = MERGES[name]
    extra = {"base": base} if "base" in record.needs else {}
    return record.function(experts, coefficients, **extra)


def num_experts(name):
    return 1 if name == "wise_ft" else 3


def weights(name):
    return jnp.asarray([0.3] if name == "wise_ft" else [0.2, 0.5, 0.3])


def assert_close(one, two, **tolerance):
    assert trees.mismatches([one, two]) == []
    flat = trees.flatten(two)
    for leaf, value in trees.flatten(one).items():
        np.testing.assert_allclose(
            np.asarray(value, np.float64),
            np.asarray(flat[leaf], np.float64),
            err_msg=leaf,
            **tolerance,
        )


@pytest.mark.parametrize("name", NAMES)
def test_one_hot_coefficients_return_that_expert_bit_for_bit(name):
    if "one_hot" not in MERGES[name].promises:
        pytest.skip("not promised")
    experts = [tree() for _ in range(num_experts(name))]
    tolerance = {"rtol": 0, "atol": 0 if name != "task_arithmetic" else 3e-7}
    for k, expert in enumerate(experts):
        merged = call(name, stack(experts), jnp.eye(len(experts))[k], tree())
        assert_close(merged, expert, **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_equal_experts_return_themselves(name):
    if "equal_experts" not in MERGES[name].promises:
        pytest.skip("not promised")
    expert = tree()
    merged = call(name, stack([expert] * 3), weights(name), tree())
    assert_close(merged, expert, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_joint_permutation_changes_nothing(name):
    if "permutation" not in MERGES[name].promises:
        pytest.skip("not promised")
    experts, base, order = [tree() for _ in range(3)], tree(), [2, 0, 1]
    one = call(name, stack(experts), weights(name), base)
    two = call(
        name,
        stack([experts[i] for i in order]),
        weights(name)[jnp.asarray(order)],
        base,
    )
    assert_close(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_zero_coefficients_return_the_base(name):
    if "base_at_zero" not in MERGES[name].promises:
        pytest.skip("not promised")
    base = tree()
    experts = stack([tree() for _ in range(num_experts(name))])
    assert_close(call(name, experts, 0 * weights(name), base), base, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_and_structure_are_kept_and_sums_are_float32(name, dtype):
    experts = [tree(dtype) for _ in range(num_experts(name))]
    base = tree(dtype)
    merged = call(name, stack(experts), weights(name), base)
    assert trees.mismatches([base, merged]) == []
    for leaf, value in trees.flatten(merged).items():
        c = np.asarray(weights(name), np.float64)
        parts = [np.asarray(trees.flatten(e)[leaf], np.float64) for e in experts]
        reference = sum(w * p for w, p in zip(c, parts, strict=True))
        if "base" in MERGES[name].needs:
            anchor = np.asarray(trees.flatten(base)[leaf], np.float64)
            reference = reference + (1 - c.sum()) * anchor
        rounding = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(value, np.float64),
            reference,
            rtol=rounding,
            atol=4e-7 + rounding * 1e-2,
        )


@pytest.mark.parametrize("name", NAMES)
def test_jit_of_vmap_equals_a_loop(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    base = tree()
    population = jnp.asarray(RANDOM.normal(size=(4, num_experts(name))), jnp.float32)
    merged = jax.jit(jax.vmap(lambda c: call(name, experts, c, base)))(population)
    for p, row in enumerate(population):
        one = jax.tree.map(lambda x, p=p: x[p], merged)
        assert_close(one, call(name, experts, row, base), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e-30])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_equal_finite_differences(name, scale):
    if not MERGES[name].differentiable:
        pytest.skip("not declared differentiable")
    experts = stack([tree(scale=scale) for _ in range(num_experts(name))])
    base = tree(scale=scale)

    def total(c):
        return sum(
            jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(call(name, experts, c, base))
        )

    gradient = jax.grad(total)(weights(name))
    assert np.isfinite(gradient).all()
    step = 1e-2
    for k in range(num_experts(name)):
        shift = step * jnp.eye(num_experts(name))[k]
        difference = (total(weights(name) + shift) - total(weights(name) - shift)) / (
            2 * step
        )
        np.testing.assert_allclose(gradient[k], difference, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_groups_give_each_part_of_the_tree_its_own_row(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    base = tree()
    record = MERGES[name]
    extra = {"base": base} if "base" in record.needs else {}
    rows = jnp.stack([weights(name), weights(name) * 0.5])
    merged = record.function(experts, rows, groups=[("head/.*", 1), (".*", 0)], **extra)
    first, second = (call(name, experts, row, base) for row in rows)
    np.testing.assert_array_equal(merged["head"]["scale"], second["head"]["scale"])
    np.testing.assert_array_equal(
        merged["encoder"]["layer_0"]["kernel"], first["encoder"]["layer_0"]["kernel"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_of_coefficients_equals_the_vector(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    base = tree()
    rows = trees.map_with_names(lambda *_: weights(name), base)
    assert_close(
        call(name, experts, rows, base),
        call(name, experts, weights(name), base),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_that_do_not_fit_are_refused(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    with pytest.raises(ValueError, match="the stack holds"):
        call(name, experts, jnp.ones(7), tree())
    with pytest.raises(ValueError, match=r"together with groups"):
        call(name, experts, jnp.ones((2, num_experts(name))), tree())


@pytest.mark.parametrize("name", [n for n in NAMES if "base" in MERGES[n].needs])
def test_a_missing_or_different_base_is_named(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    with pytest.raises(ValueError, match=f"{name}: needs base"):
        MERGES[name].function(experts, weights(name))
    with pytest.raises(trees.TreeMismatch, match="head/scale"):
        MERGES[name].function(experts, weights(name), base={"a": jnp.zeros(2)})


def test_the_mean_of_models_loaded_into_one_template_is_their_mean():
    # Guard against aliasing: a list of references to one reloaded model averages to
    # the last one.
    template, files = tree(), [tree() for _ in range(3)]
    loaded = [jax.tree.map(lambda _, x: x, template, file) for file in files]
    merged = call("weighted_average", stack(loaded), jnp.full(3, 1 / 3), None)
    mean = jax.tree.map(lambda *x: np.mean(np.stack(x), 0), *files)
    assert_close(merged, mean, rtol=1e-6, atol=1e-6)
