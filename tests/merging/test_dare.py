"""DARE drops at random, rescales without bias, and is exact at its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.dare import RECORDS, dare, dare_form, dare_ties
from fusion_jax.merging.form import Block
from fusion_jax.merging.masks import leaf_keys, uniform
from tests.merging.task_vectors import (
    assert_mapped_equals_a_loop,
    assert_trees_close,
    combined,
    deltas_of,
    draws,
    experts_and_base,
)

KEY = jax.random.key(3)
STACK, BASE = experts_and_base()
ROW = jnp.asarray([0.2, 0.5, 0.3])


def dropped(name, stack, deltas, density, rescale, exempt):
    """d_k of one leaf, in float64."""
    shape = stack[name].shape[1:]
    if exempt and len(shape) <= 1:
        return deltas
    u = draws(KEY, name, stack[name])
    out = np.zeros_like(deltas)
    for k in range(len(deltas)):
        keep = u[k] < density[k]
        survivors = np.where(keep, deltas[k], 0)
        if rescale == "inverse":
            factor = 1 / density[k]
        elif rescale == "l1":
            after = np.abs(survivors).sum()
            factor = np.abs(deltas[k]).sum() / after if after else 1.0
            factor = min(factor, survivors.size)
        else:
            factor = 1.0
        out[k] = survivors * factor
    return out


@pytest.mark.parametrize(
    ("options", "merge"),
    [
        ({"density": 0.4}, dare),
        ({"density": np.asarray([0.3, 0.5, 0.9]), "exempt_vectors": False}, dare),
        ({"density": 0.5, "rescale": "l1", "exempt_vectors": False}, dare),
        ({"density": 0.5, "rescale": "none", "elect": "weighted"}, dare),
        ({"density": 0.6, "scale": 1.5}, dare_ties),
    ],
)
def test_the_merge_equals_a_float64_reference_with_the_same_masks(options, merge):
    ties = merge is dare_ties
    merged = merge(STACK, ROW, base=BASE, key=KEY, **options)
    expected = {}
    for name, deltas in deltas_of(STACK, BASE).items():
        d = dropped(
            name,
            STACK,
            deltas,
            np.broadcast_to(options["density"], 3),
            options.get("rescale", "inverse"),
            options.get("exempt_vectors", True),
        )
        delta = combined(
            d,
            np.asarray(ROW, np.float64),
            options.get("elect", "unweighted" if ties else "none"),
            "mean" if ties else "sum",
        )
        expected[name] = np.asarray(BASE[name], np.float64)
        expected[name] = expected[name] + options.get("scale", 1.0) * delta
    assert_trees_close(merged, expected)


def test_bfloat16_leaves_come_back_as_the_rounded_float32_result():
    half, anchor = (
        {n: x.astype(jnp.bfloat16) for n, x in t.items()} for t in (STACK, BASE)
    )
    merged = dare(half, ROW, base=anchor, key=KEY, density=0.5)
    wide, floor = (
        {n: x.astype(jnp.float32) for n, x in t.items()} for t in (half, anchor)
    )
    exact = dare(wide, ROW, base=floor, key=KEY, density=0.5)
    for name in merged:
        assert merged[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(merged[name], exact[name].astype(jnp.bfloat16))


def test_the_mean_over_keys_of_a_small_leaf_is_the_task_vector():
    delta = np.linspace(-1, 1.6, 16).astype(np.float32)
    stack, base = {"a": jnp.asarray(delta)[None]}, {"a": jnp.zeros(16)}
    p, number = 0.9, 4000

    def one(key, rescale):
        return dare(
            stack,
            jnp.ones(1),
            base=base,
            key=key,
            density=1 - p,
            rescale=rescale,
            exempt_vectors=False,
        )["a"]

    keys = jax.random.split(jax.random.key(0), number)

    def mean(rescale):
        program = jax.jit(
            lambda ks: jax.lax.map(lambda k: one(k, rescale), ks, batch_size=100)
        )
        return np.asarray(program(keys), np.float64).mean(0)

    error = np.abs(delta) * np.sqrt(p / (1 - p) / number)
    distance = np.abs(mean("inverse") - delta) / error
    assert distance.max() < 4
    # The test can tell: keeping the L1 norm, as some do, is far off.
    assert (np.abs(mean("l1") - delta) / error).max() > 8


def test_density_zero_is_the_base_and_density_one_the_whole_sum():
    options = {"base": BASE, "key": KEY, "exempt_vectors": False}
    for merge in (dare, dare_ties):
        empty = merge(STACK, ROW, density=0.0, **options)
        assert_trees_close(empty, BASE, rtol=0, atol=0)
    whole = dare(STACK, ROW, density=1.0, **options)
    expected = {
        n: np.asarray(BASE[n], np.float64)
        + combined(d, np.asarray(ROW, np.float64), "none", "sum")
        for n, d in deltas_of(STACK, BASE).items()
    }
    assert_trees_close(whole, expected)
    # [1, 2] at a drop share of one was NaN elsewhere; gradients too must be finite.
    pair = {"a": jnp.asarray([[[1.0, 2.0]]])}
    gradient = jax.grad(
        lambda d: jnp.sum(
            dare(pair, jnp.ones(1), base={"a": jnp.zeros((1, 2))}, key=KEY, density=d)[
                "a"
            ]
        )
    )(0.0)
    assert np.isfinite(gradient)


def test_survivors_grow_by_the_inverse_density_whatever_was_dropped():
    stack = {"a": jnp.asarray([[[8.0, 1.0], [1.0, 1.0]]])}
    base = {"a": jnp.zeros((2, 2))}
    for seed in range(200):
        key = jax.random.key(seed)
        keep = draws(key, "a", stack["a"])[0].reshape(-1) < 0.75
        if keep.tolist() == [False, True, True, True]:
            break
    else:
        pytest.fail("no such mask among 200")
    merged = dare(stack, jnp.ones(1), base=base, key=key, density=0.75)["a"]
    np.testing.assert_allclose(merged.reshape(-1), [0, 4 / 3, 4 / 3, 4 / 3], rtol=1e-6)
    l1 = dare(stack, jnp.ones(1), base=base, key=key, density=0.75, rescale="l1")["a"]
    np.testing.assert_allclose(l1.reshape(-1), [0, 11 / 3, 11 / 3, 11 / 3], rtol=1e-6)


def test_one_tiny_survivor_grows_n_fold_at_most_under_l1():
    stack = {"a": jnp.asarray([[8.0, 1e-9]])}
    options = {"base": {"a": jnp.zeros(2)}, "density": 0.5, "exempt_vectors": False}
    for seed in range(50):
        key = jax.random.key(seed)
        if (draws(key, "a", stack["a"])[0] < 0.5).tolist() == [False, True]:
            break
    merged = dare(stack, jnp.ones(1), key=key, rescale="l1", **options)["a"]
    np.testing.assert_allclose(merged, [0, 2e-9], rtol=1e-6)


def test_vectors_and_scalars_are_dropped_only_where_that_is_asked_for():
    options = {"base": BASE, "key": KEY, "density": 0.3}
    kept = dare(STACK, jnp.eye(3)[0], **options)
    loose = dare(STACK, jnp.eye(3)[0], exempt_vectors=False, **options)
    np.testing.assert_allclose(kept["vector"], STACK["vector"][0], rtol=1e-6)
    assert np.any(np.asarray(loose["vector"]) == np.asarray(BASE["vector"]))
    np.testing.assert_array_equal(loose["matrix"], kept["matrix"])


@pytest.mark.parametrize("option", ["coefficients", "density", "scale"])
def test_jit_of_vmap_over_each_number_equals_a_loop(option):
    if option == "coefficients":
        values = jnp.asarray([[0.1, 0.2, 0.7], [1.0, -1.0, 0.5]])
        merge = lambda c: dare(STACK, c, base=BASE, key=KEY, density=0.5)  # noqa: E731
    else:
        values = jnp.asarray([0.0, 0.3, 1.0])
        merge = lambda x: dare_ties(  # noqa: E731
            STACK, ROW, base=BASE, key=KEY, **{option: x}
        )
    assert_mapped_equals_a_loop(merge, values)


def test_a_leaf_cut_in_pieces_draws_the_numbers_of_the_whole_leaf():
    size, length = 40000, 9000
    experts = jnp.zeros((2, size))
    keys = leaf_keys(KEY, "a", 2)
    whole = draws(KEY, "a", experts)

    @jax.jit
    def piece(part, start):
        return uniform(
            Block(part, None, jnp.ones(2), start, keys, None, size, (size,), "a")
        )

    for start in (0, 1, 16383, 16384, 20000, 31000):
        part = piece(experts[:, start : start + length], jnp.int32(start))
        np.testing.assert_array_equal(part, whole[:, start : start + length])
    assert len(np.unique(whole)) > 0.99 * whole.size  # neither experts nor runs repeat


def test_a_piece_of_a_leaf_is_the_piece_of_the_merged_leaf():
    random = np.random.default_rng(1)
    leaf = jnp.asarray(random.normal(size=(3, 60, 300)), jnp.float32)
    base = jnp.zeros((60, 300))
    whole = dare({"a": leaf}, ROW, base={"a": base}, key=KEY, density=0.4)["a"]
    form, options = dare_form(), {"density": 0.4, "scale": 1.0}
    keys = leaf_keys(KEY, "a", 3)
    flat, start, size = leaf.reshape(3, -1), 15000, 2500
    block = Block(
        experts=flat[:, start : start + size],
        base=jnp.zeros(size),
        coefficients=ROW,
        start=jnp.int32(start),
        keys=keys,
        valid=None,
        size=18000,
        shape=(60, 300),
        name="",
    )
    piece = form.apply(block, {}, options)
    np.testing.assert_allclose(
        piece, whole.reshape(-1)[start : start + size], rtol=1e-6, atol=1e-7
    )


@settings(max_examples=20)
@given(
    density=st.floats(0.05, 1.0),
    shape=st.sampled_from([(1, 1), (3, 4)]),
    seed=st.integers(0, 2**16),
)
def test_every_entry_is_dropped_or_divided_by_the_density(density, shape, seed):
    delta = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    merged = dare(
        {"a": jnp.asarray(delta)[None]},
        jnp.ones(1),
        base={"a": jnp.zeros(shape)},
        key=jax.random.key(seed),
        density=density,
    )["a"]
    merged = np.asarray(merged, np.float64)
    np.testing.assert_allclose(
        merged, np.where(merged == 0, 0, delta / density), rtol=1e-5
    )


def test_what_is_missing_or_unknown_is_named():
    with pytest.raises(ValueError, match="dare: needs base"):
        dare(STACK, ROW, key=KEY)
    with pytest.raises(ValueError, match="dare_ties: draws random masks"):
        dare_ties(STACK, ROW, base=BASE)
    with pytest.raises(ValueError, match="rescale: 'l2' is not one of inverse, l1"):
        dare(STACK, ROW, base=BASE, key=KEY, rescale="l2")


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_gradients_are_finite_on_zero_and_tiny_leaves(name):
    merge = RECORDS[name].function
    for size in (0.0, 1e-30):
        stack = {"a": size * STACK["matrix"]}
        gradient = jax.grad(
            lambda s, c: jnp.sum(
                jnp.sin(merge(s, c, base={"a": jnp.zeros((6, 5))}, key=KEY)["a"])
            ),
            argnums=(0, 1),
        )(stack, ROW)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
