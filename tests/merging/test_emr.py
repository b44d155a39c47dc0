"""EMR against its formula, and the models of single tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax import stack, trees
from fusion_jax.merging.emr import emr, emr_model

FLOATING = ("kernel", "bias", "scale", "constant", "frozen")


def tree(seed, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
    return {
        "kernel": draw(4, 3),
        "bias": draw(1),
        "scale": draw(),
        "constant": jnp.full((2, 2), seed, dtype),
        "frozen": jnp.ones(3, dtype),
        "steps": jnp.asarray(7),
    }


def reference(experts, base):
    """(u, masks, scales) of whole vectors in float64, entry by entry."""
    whole = lambda t: np.concatenate(  # noqa: E731
        [np.ravel(np.asarray(t[n], float)) for n in FLOATING]
    )
    rows = np.stack([whole(e) - whole(base) for e in experts])
    unified, masks = np.zeros(rows.shape[1]), np.zeros(rows.shape, bool)
    for i in range(rows.shape[1]):
        sign = 1 if rows[:, i].sum() > 0 else -1
        masks[:, i] = rows[:, i] * sign > 0
        if masks[:, i].any():
            unified[i] = sign * abs(rows[masks[:, i], i]).max()
    scales = [
        abs(row).sum() / abs(mask * unified).sum()
        for row, mask in zip(rows, masks, strict=True)
    ]
    return whole(base), unified, masks, np.asarray(scales)


def whole(params):
    return np.concatenate([np.ravel(np.asarray(params[n], float)) for n in FLOATING])


def test_the_unified_model_masks_and_scales_are_those_of_the_formula():
    base, experts = tree(0), [tree(k) for k in (1, 2, 3)]
    result = emr(stack(experts), jnp.ones(3), base=base)
    anchor, unified, masks, scales = reference(experts, base)
    np.testing.assert_allclose(whole(result.params), anchor + unified, rtol=1e-5)
    np.testing.assert_allclose(result.scales, scales, rtol=1e-5)
    for k in range(3):
        mask = jax.tree.map(lambda x, k=k: x[k], result.masks)
        np.testing.assert_array_equal(whole(mask), masks[k])
        np.testing.assert_allclose(
            whole(emr_model(result, base, k)),
            anchor + scales[k] * masks[k] * unified,
            rtol=1e-5,
            atol=1e-6,
        )
    assert result.masks["steps"].shape == (3,)
    assert emr_model(result, base, 0)["steps"] == 7


def test_sums_are_over_the_whole_vector_not_means_of_leaves():
    # Means of leaves would give expert 1 the scale (1 + 1) / (1 + 2) = 2/3.
    experts = [
        {"large": jnp.full(9, 1.0), "small": jnp.full(1, 1.0)},
        {"large": jnp.full(9, 1.0), "small": jnp.full(1, 2.0)},
    ]
    base = jax.tree.map(jnp.zeros_like, experts[0])
    result = emr(stack(experts), jnp.ones(2), base=base)
    np.testing.assert_allclose(result.scales, [10 / 11, 1], rtol=1e-6)


def test_an_untouched_or_outvoted_expert_keeps_the_base():
    experts = [{"w": jnp.asarray(row)} for row in ([3.0, 3.0], [-1.0, -1.0], [0.0, 0])]
    base = {"w": jnp.zeros(2)}
    result = emr(stack(experts), jnp.ones(3), base=base)
    np.testing.assert_array_equal(result.scales, [1, 0, 0])
    for k in (1, 2):
        np.testing.assert_array_equal(emr_model(result, base, k)["w"], [0, 0])


def test_a_balanced_entry_goes_to_the_negative_side():
    experts = {"w": jnp.asarray([[2.0], [-2.0]])}
    result = emr(experts, jnp.ones(2), base={"w": jnp.zeros(1)})
    np.testing.assert_array_equal(result.params["w"], [-2.0])
    np.testing.assert_array_equal(result.masks["w"], [[False], [True]])


def test_coefficients_do_not_count_but_must_fit():
    base, experts = tree(0), stack([tree(k) for k in (1, 2, 3)])
    one = emr(experts, jnp.ones(3), base=base)
    two = emr(experts, jnp.asarray([0.1, 0.0, -5.0]), base=base)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="the stack holds"):
        emr(experts, jnp.ones(2), base=base)
    with pytest.raises(ValueError, match="emr: needs base"):
        emr(experts, jnp.ones(3))


def test_dtypes_are_kept():
    base = tree(0, jnp.bfloat16)
    experts = stack([tree(k, jnp.bfloat16) for k in (1, 2, 3)])
    result = emr(experts, jnp.ones(3), base=base)
    assert trees.mismatches([base, result.params]) == []
    assert trees.mismatches([base, emr_model(result, base, 1)]) == []
    assert result.scales.dtype == jnp.float32


def test_it_maps_over_experts_and_tasks():
    base = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    random = np.random.default_rng(1)
    many = jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=(4, 3, *x.shape)), jnp.float32), base
    )

    def models(experts):
        result = emr(experts, jnp.ones(3), base=base)
        return jax.vmap(lambda k: emr_model(result, base, k))(jnp.arange(3))

    mapped = jax.jit(jax.vmap(models))(many)
    for i in range(4):
        experts = jax.tree.map(lambda x, i=i: x[i], many)
        result = emr(experts, jnp.ones(3), base=base)
        for k in range(3):
            one = emr_model(result, base, k)
            for name, x in one.items():
                np.testing.assert_allclose(mapped[name][i, k], x, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=5, max_size=5), min_size=1),
    st.sampled_from([1e-30, 1.0, 1e20]),
)
def test_task_models_keep_the_size_of_their_task_vectors(rows, factor):
    deltas = jnp.asarray(rows, jnp.float32) * factor
    base = {"w": jnp.zeros(5)}
    result = emr({"w": deltas}, jnp.ones(len(rows)), base=base)
    for k, delta in enumerate(np.asarray(deltas)):
        model = np.asarray(emr_model(result, base, k)["w"])
        agrees = np.asarray(result.masks["w"][k])
        size = np.abs(delta).sum() if agrees.any() else 0
        np.testing.assert_allclose(np.abs(model).sum(), size, rtol=1e-5)
