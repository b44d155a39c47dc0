"""DELLA keeps the larger entries of a row more often, and is unbiased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.della import della, della_linear
from tests.merging.task_vectors import (
    assert_mapped_equals_a_loop,
    assert_trees_close,
    combined,
    deltas_of,
    draws,
    experts_and_base,
)

KEY = jax.random.key(5)
STACK, BASE = experts_and_base()
ROW = jnp.asarray([0.2, 0.5, 0.3])


def probabilities(delta, density, epsilon, input_axis=-2):
    """q of one expert's leaf, row by row."""
    if density >= 1 or density <= 0:
        return np.full(delta.shape, float(density >= 1))
    if delta.ndim == 0:
        return np.asarray(density)
    axis = input_axis if delta.ndim > 1 else -1
    rows = np.moveaxis(delta, axis, -1)
    out = np.zeros(rows.shape)
    for index in np.ndindex(rows.shape[:-1]):
        row = [abs(x) for x in rows[index]]
        for i, x in enumerate(row):
            smaller = sum(y < x or (y == x and j < i) for j, y in enumerate(row))
            share = smaller / (len(row) - 1) if len(row) > 1 else 0.5
            q = density - epsilon + 2 * epsilon * share
            out[(*index, i)] = min(max(q, 1e-3), 1)
    return np.moveaxis(out, -1, axis)


@pytest.mark.parametrize(
    ("options", "merge"),
    [
        ({}, della),
        ({"density": 0.5, "epsilon": 0.2, "input_axis": -1}, della),
        ({"density": 0.5, "epsilon": 0.6, "exempt_vectors": False}, della_linear),
        ({"density": 0.5, "rescale": "l1", "scale": 1.5}, della_linear),
    ],
)
def test_the_merge_equals_a_float64_reference_with_the_same_masks(options, merge):
    merged = merge(STACK, ROW, base=BASE, key=KEY, **options)
    density, epsilon = options.get("density", 0.7), options.get("epsilon", 0.07)
    exempt = options.get("exempt_vectors", True)
    expected = {}
    for name, deltas in deltas_of(STACK, BASE).items():
        u, d = draws(KEY, name, STACK[name]), deltas.copy()
        for k in range(len(d)):
            if exempt and deltas[k].ndim <= 1:
                continue
            axis = options.get("input_axis", -2)
            q = probabilities(deltas[k], density, epsilon, axis)
            d[k] = np.where(u[k] < q, deltas[k], 0)
            if options.get("rescale") == "l1":
                after = np.abs(d[k]).sum()
                d[k] = d[k] * (np.abs(deltas[k]).sum() / after if after else 1)
            else:
                d[k] = d[k] / q
        if merge is della:
            delta = combined(d, np.asarray(ROW, np.float64), "unweighted", "mean")
        else:
            delta = combined(d, np.asarray(ROW, np.float64), "none", "sum")
        expected[name] = np.asarray(BASE[name], np.float64)
        expected[name] = expected[name] + options.get("scale", 1.0) * delta
    assert_trees_close(merged, expected)


def test_each_survivor_is_divided_by_its_own_probability_and_the_mean_is_unbiased():
    delta = np.asarray([3, -1, 2, 8, -6, 4, 7, 5], np.float32)
    q = 0.3 + 0.4 * (np.abs(delta) - 1) / 7
    number = 4000
    stack, base = {"a": jnp.asarray(delta)[None, :, None]}, {"a": jnp.zeros((8, 1))}

    def one(key):
        merged = della_linear(
            stack, jnp.ones(1), base=base, key=key, density=0.5, epsilon=0.2
        )
        return merged["a"][:, 0]

    keys = jax.random.split(jax.random.key(0), number)
    every = jax.jit(lambda ks: jax.lax.map(one, ks, batch_size=100))(keys)
    every = np.asarray(every, np.float64)
    np.testing.assert_allclose(every, np.where(every == 0, 0, delta / q), rtol=1e-5)
    error = np.abs(delta) * np.sqrt((1 - q) / q / number)
    assert (np.abs(every.mean(0) - delta) / error).max() < 4
    share = (every != 0).mean(0)
    assert (np.abs(share - q) / np.sqrt(q * (1 - q) / number)).max() < 4


@pytest.mark.parametrize(
    ("shape", "input_axis"), [((5, 1), -1), ((1, 5), -2), ((1,), -2), ((), -1)]
)
def test_rows_of_one_entry_have_the_density_as_their_probability(shape, input_axis):
    stack = {"a": jnp.full((1, *shape), 2.0)}
    options = {"density": 0.5, "epsilon": 0.25, "exempt_vectors": False}
    merged = della_linear(
        stack,
        jnp.ones(1),
        base={"a": jnp.zeros(shape)},
        key=KEY,
        input_axis=input_axis,
        **options,
    )["a"]
    keep = draws(KEY, "a", stack["a"])[0] < 0.5
    np.testing.assert_array_equal(merged, np.where(keep, 4.0, 0.0))


def test_density_one_keeps_all_and_density_zero_none_whatever_the_window():
    options = {"base": BASE, "key": KEY, "epsilon": 0.3, "exempt_vectors": False}
    empty = della(STACK, ROW, density=0.0, **options)
    assert_trees_close(empty, BASE, rtol=0, atol=0)
    whole = della_linear(STACK, ROW, density=1.0, **options)
    expected = {
        n: np.asarray(BASE[n], np.float64)
        + combined(d, np.asarray(ROW, np.float64), "none", "sum")
        for n, d in deltas_of(STACK, BASE).items()
    }
    assert_trees_close(whole, expected)


def test_a_window_wider_than_the_unit_interval_stays_finite():
    merged = della_linear(
        STACK, ROW, base=BASE, key=KEY, density=0.05, epsilon=0.9, exempt_vectors=False
    )
    assert all(np.isfinite(x).all() for x in merged.values())


def test_the_input_axis_follows_the_layout():
    def transposed(tree):
        return {"matrix": jnp.swapaxes(tree["matrix"], -1, -2)}

    # Ranks do not depend on the draw, so the mean over keys shows the axis: with one
    # expert and q in {0, 1} (density .5, epsilon .5 and two entries a row) nothing is
    # left to chance but a probability of 1e-3.
    stack = {"matrix": jnp.asarray([[[1.0, 4.0], [2.0, 3.0]]])}
    base = {"matrix": jnp.zeros((2, 2))}
    options = {"key": KEY, "density": 0.5, "epsilon": 0.5}
    flax = della_linear(stack, jnp.ones(1), base=base, **options)["matrix"]
    np.testing.assert_array_equal(flax, [[0, 4], [2, 0]])
    torch = della_linear(
        transposed(stack), jnp.ones(1), base=base, input_axis=-1, **options
    )["matrix"]
    np.testing.assert_array_equal(torch, [[0, 2], [4, 0]])


@pytest.mark.parametrize("option", ["coefficients", "density", "epsilon"])
def test_jit_of_vmap_over_each_number_equals_a_loop(option):
    if option == "coefficients":
        values = jnp.asarray([[0.1, 0.2, 0.7], [1.0, 0.5, 0.5]])
        merge = lambda c: della(STACK, c, base=BASE, key=KEY)  # noqa: E731
    else:
        values = jnp.asarray([0.0, 0.3, 1.0])
        merge = lambda x: della_linear(  # noqa: E731
            STACK, ROW, base=BASE, key=KEY, **{option: x}
        )
    assert_mapped_equals_a_loop(merge, values)


@settings(max_examples=15)
@given(
    density=st.floats(0.1, 0.9),
    shape=st.sampled_from([(1, 3), (4, 2)]),
    seed=st.integers(0, 2**16),
)
def test_at_epsilon_zero_it_is_dare(density, shape, seed):
    delta = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    merged = della_linear(
        {"a": jnp.asarray(delta)[None]},
        jnp.ones(1),
        base={"a": jnp.zeros(shape)},
        key=KEY,
        density=density,
        epsilon=0.0,
    )["a"]
    keep = draws(KEY, "a", jnp.asarray(delta)[None])[0] < np.float32(density)
    np.testing.assert_allclose(merged, np.where(keep, delta / density, 0), rtol=1e-5)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="della: needs base"):
        della(STACK, ROW, key=KEY)
    with pytest.raises(ValueError, match="della_linear: draws random masks"):
        della_linear(STACK, ROW, base=BASE)
