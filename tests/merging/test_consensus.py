"""TALL masks and the consensus merge against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax import stack, trees
from fusion_jax.merging.consensus import consensus, tall_masks, tall_model

C = jnp.asarray([0.6, 1.0, -0.5])


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


def reference(experts, base, c, scales, threshold):
    """(masks [K, ...], merged delta) of one leaf in float64, entry by entry."""
    deltas = np.stack([np.asarray(e, float) - np.asarray(base, float) for e in experts])
    rows = deltas.reshape(len(deltas), -1)
    masks, merged = np.zeros(rows.shape, bool), np.zeros(rows.shape[1])
    for i in range(rows.shape[1]):
        total = sum(w * d for w, d in zip(c, rows[:, i], strict=True))
        for k in range(len(rows)):
            masks[k, i] = abs(rows[k, i]) > scales[k] * abs(total - rows[k, i])
        merged[i] = total if masks[:, i].sum() >= threshold else 0
    return masks.reshape(deltas.shape), merged.reshape(deltas.shape[1:])


@pytest.mark.parametrize("threshold", [0, 1, 2, 3])
@pytest.mark.parametrize("mask_scale", [0.4, (0.2, 0.4, 0.6)])
def test_the_consensus_is_that_of_the_formula(threshold, mask_scale):
    base, experts = tree(0), [tree(k) for k in (1, 2, 3)]
    lam = jnp.asarray(mask_scale)
    merged = consensus(
        stack(experts), C, base=base, mask_scale=lam, scale=0.7, threshold=threshold
    )
    assert trees.mismatches([base, merged]) == []
    for name in ("kernel", "bias", "scale", "constant", "frozen"):
        _, delta = reference(
            [e[name] for e in experts],
            base[name],
            np.asarray(C, float),
            np.broadcast_to(mask_scale, 3),
            threshold,
        )
        np.testing.assert_allclose(
            merged[name], np.asarray(base[name]) + 0.7 * delta, rtol=1e-5, atol=1e-6
        )
    assert merged["steps"] == 7


def test_an_entry_used_by_one_task_alone_is_dropped():
    # The first entry is of expert 1 alone, the second of both, the third of neither.
    experts = {"w": jnp.asarray([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])}
    merged = consensus(experts, jnp.ones(2), base={"w": jnp.zeros(3)})
    np.testing.assert_array_equal(merged["w"], [0, 2, 0])


def test_masks_and_task_models_are_those_of_the_formula():
    base, experts = tree(0), [tree(k) for k in (1, 2, 3)]
    result = tall_masks(stack(experts), C, base=base)
    for name in ("kernel", "bias", "scale", "constant", "frozen"):
        masks, delta = reference(
            [e[name] for e in experts],
            base[name],
            np.asarray(C, float),
            [0.4] * 3,
            0,
        )
        anchor = np.asarray(base[name])
        assert result.masks[name].dtype == bool
        np.testing.assert_array_equal(result.masks[name], masks)
        np.testing.assert_allclose(
            result.params[name], anchor + delta, rtol=1e-5, atol=1e-6
        )
        for k in range(3):
            np.testing.assert_allclose(
                tall_model(result, base, k)[name],
                anchor + masks[k] * delta,
                rtol=1e-5,
                atol=1e-6,
            )
    assert result.masks["steps"].shape == (3,)
    assert tall_model(result, base, 0)["steps"] == 7


def test_a_mask_recovers_tasks_that_share_no_entry():
    experts = [{"w": jnp.asarray(row)} for row in ([1.0, 2, 0, 0], [0.0, 0, 3, 4])]
    base = {"w": jnp.zeros(4)}
    result = tall_masks(stack(experts), jnp.ones(2), base=base)
    for k, expert in enumerate(experts):
        np.testing.assert_array_equal(tall_model(result, base, k)["w"], expert["w"])


def test_a_threshold_that_no_entry_reaches_is_refused():
    with pytest.raises(ValueError, match="no entry serves 2 of 1 experts"):
        consensus({"w": jnp.ones((1, 2))}, jnp.ones(1), base={"w": jnp.zeros(2)})


def test_a_base_is_needed():
    for merge in (consensus, tall_masks):
        with pytest.raises(ValueError, match=f"{merge.__name__}: needs base"):
            merge({"w": jnp.ones((2, 2))}, jnp.ones(2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_are_kept_and_computed_in_float32(dtype):
    base, experts = tree(0, dtype), [tree(k, dtype) for k in (1, 2, 3)]
    merged = consensus(stack(experts), C, base=base)
    assert trees.mismatches([base, merged]) == []
    _, delta = reference(
        [e["kernel"] for e in experts],
        base["kernel"],
        np.asarray(C, float),
        [0.4] * 3,
        2,
    )
    wanted = jnp.asarray(np.asarray(base["kernel"], float) + delta, dtype)
    np.testing.assert_allclose(
        np.asarray(merged["kernel"], float),
        np.asarray(wanted, float),
        rtol=float(jnp.finfo(dtype).eps),
    )


@pytest.mark.parametrize("option", ["coefficients", "mask_scale", "scale"])
def test_jit_of_vmap_equals_a_loop(option):
    base, experts = tree(0), stack([tree(k) for k in (1, 2, 3)])
    values = {
        "coefficients": jnp.asarray([[1.0, 0, 0], [0.2, 0.5, 0.3], [0, 0, 0]]),
        "mask_scale": jnp.asarray([0.0, 0.4, 2.0]),
        "scale": jnp.asarray([0.0, 1.0, 2.0]),
    }[option]

    def merge(value):
        options = {"coefficients": C, option: value}
        return (
            consensus(experts, base=base, **options),
            tall_masks(experts, base=base, **options),
        )

    merged = jax.jit(jax.vmap(merge))(values)
    for i, value in enumerate(values):
        for one, two in zip(
            jax.tree.leaves(merged), jax.tree.leaves(merge(value)), strict=True
        ):
            np.testing.assert_allclose(one[i], two, rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=5, max_size=5), min_size=2),
    st.sampled_from([2.0**-40, 0.5, 2.0**20]),
)
def test_a_multiple_of_the_deltas_gives_that_multiple(rows, factor):
    deltas, base = jnp.asarray(rows, jnp.float32), {"w": jnp.zeros(5)}
    ones = jnp.ones(len(rows))
    one = consensus({"w": deltas}, ones, base=base)["w"]
    other = consensus({"w": factor * deltas}, ones, base=base)["w"]
    np.testing.assert_array_equal(other, factor * one)
