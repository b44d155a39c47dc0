"""TIES trims to exact counts, elects signs, and merges those who agree."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.form import Block
from fusion_jax.merging.selection import count, kept, threshold
from fusion_jax.merging.ties import ties
from tests.merging.task_vectors import (
    assert_mapped_equals_a_loop,
    assert_trees_close,
    combined,
    deltas_of,
    experts_and_base,
)

STACK, BASE = experts_and_base()
ROW = jnp.asarray([0.2, 0.5, 0.3])


def trimmed(flat, density):
    """The largest of one vector, in exact number; ties in the order of positions."""
    order = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i))
    out = np.zeros(flat.size)
    for i in order[: int(np.floor(density * flat.size + 1e-9))]:
        out[i] = flat[i]
    return out


def reference(deltas, row, density, scope, elect, aggregate):
    """Merged task vectors, leaf by leaf."""
    names, row = sorted(deltas), np.asarray(row, np.float64)
    density = np.broadcast_to(density, len(row))
    parts = [names] if scope == "model" else [[n] for n in names]
    out = {}
    for part in parts:
        flat = np.concatenate([deltas[n].reshape(len(row), -1) for n in part], 1)
        flat = np.stack([trimmed(x, density[k]) for k, x in enumerate(flat)])
        zero = 1.0
        if scope == "model":
            vote = (row[:, None] * flat if elect == "weighted" else flat).sum(0)
            zero = np.sign(np.sign(vote).sum())
        merged = combined(flat, row, elect, aggregate, zero)
        for n in part:
            shape = deltas[n].shape[1:]
            size = int(np.prod(shape))
            out[n], merged = merged[:size].reshape(shape), merged[size:]
    return out


def of_deltas(deltas, row=None, **options):
    deltas = jnp.asarray(deltas, jnp.float32)
    row = jnp.ones(len(deltas)) if row is None else jnp.asarray(row)
    return np.asarray(
        ties({"a": deltas}, row, base={"a": jnp.zeros_like(deltas[0])}, **options)["a"]
    )


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize(
    ("elect", "aggregate", "density"),
    [
        ("unweighted", "mean", 0.3),
        ("weighted", "sum", np.asarray([0.2, 0.5, 1.0])),
        ("none", "mean", 0.6),
    ],
)
def test_the_merge_equals_a_float64_reference(scope, elect, aggregate, density):
    words = {"elect": elect, "aggregate": aggregate}
    options = {"density": density, "scale": 1.3, "trim_scope": scope}
    merged = ties(STACK, ROW, base=BASE, **options, **words)
    delta = reference(deltas_of(STACK, BASE), ROW, density, scope, elect, aggregate)
    expected = {n: np.asarray(BASE[n], np.float64) + 1.3 * delta[n] for n in BASE}
    assert_trees_close(merged, expected)


def test_known_answers_where_nothing_is_trimmed():
    deltas = [[3.0, -1.0, 2.0], [1.0, 4.0, -2.0]]
    options = {"density": 1.0, "trim_scope": "model"}
    np.testing.assert_array_equal(
        of_deltas(deltas, aggregate="sum", **options), [4, 4, 2]
    )
    np.testing.assert_array_equal(
        of_deltas(deltas, aggregate="mean", **options), [2, 4, 2]
    )


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_exactly_the_asked_number_is_kept(scope):
    def number(values, density):
        merged = of_deltas([values], density=density, trim_scope=scope)
        return np.flatnonzero(merged).tolist()

    five = np.arange(1.0, 6.0)
    assert number(five, 0.2) == [4]
    assert number(five, 1.0) == [0, 1, 2, 3, 4]
    assert number(np.arange(1.0, 11.0), 0.2) == [8, 9]
    assert number(np.arange(1.0, 101.0), 0.29) == list(range(71, 100))
    assert number(np.ones(10), 0.3) == [0, 1, 2]
    assert number(five, 0.0) == []


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_mostly_zero_deltas_keep_the_asked_share_eligible_and_zeros_stay_zero(scope):
    values = np.zeros(100, np.float32)
    values[::10] = np.arange(1, 11)
    merged = of_deltas([values], density=0.2, trim_scope=scope)
    np.testing.assert_array_equal(merged, values)
    rows = jnp.abs(jnp.asarray(values))[None]
    line = threshold(rows, jnp.asarray(count(0.2, 100)))
    block = Block(rows, None, ROW, 0, None, None, 100, (100,), "a")
    assert int(kept(rows, line, block).sum()) == 20


def test_a_vote_of_zero_takes_the_sign_of_the_majority():
    up = [[1.0, 1.0, 5.0], [-1.0, 1.0, 5.0]]
    down = [[1.0, -1.0, -5.0], [-1.0, -1.0, -5.0]]
    options = {"density": 1.0}
    assert of_deltas(up, **options)[0] == 1
    assert of_deltas(down, **options)[0] == -1
    # By the leaf there is no majority to ask: plus.
    assert of_deltas(down, trim_scope="tensor", **options)[0] == 1
    # No majority at all: the base.
    assert of_deltas([[1.0, 2.0, -2.0], [-1.0, 1.0, -1.0]], **options)[0] == 0


def test_the_scope_of_the_trim_is_the_model_or_each_tensor():
    stack = {
        "big": jnp.asarray([[10.0, 20, 30, 40]]),
        "small": jnp.arange(1.0, 5)[None],
    }
    base = {"big": jnp.zeros(4), "small": jnp.zeros(4)}
    model = ties(stack, jnp.ones(1), base=base, density=0.5)
    np.testing.assert_array_equal(model["big"], [10, 20, 30, 40])
    np.testing.assert_array_equal(model["small"], [0, 0, 0, 0])
    tensor = ties(stack, jnp.ones(1), base=base, density=0.5, trim_scope="tensor")
    np.testing.assert_array_equal(tensor["big"], [0, 0, 30, 40])
    np.testing.assert_array_equal(tensor["small"], [0, 0, 3, 4])


def test_weights_of_both_signs_need_the_sum():
    row, deltas = [1.0, -0.999], [[0.01], [0.0101]]
    summed = of_deltas(deltas, row, density=1.0, aggregate="sum")
    np.testing.assert_allclose(summed, [0.01 - 0.999 * 0.0101], rtol=1e-4)
    # A mean divides by weights that cancel: inside jit nothing can be refused, so the
    # function says that they must not be negative there.
    assert abs(of_deltas(deltas, row, density=1.0, aggregate="mean")[0]) > 0.05
    assert "not negative with\n        aggregate='mean'" in str(ties.__doc__)


def test_a_multiple_of_the_weights_cancels_in_the_mean():
    one, two = (ties(STACK, c * ROW, base=BASE, density=0.5) for c in (1.0, 4.0))
    assert_trees_close(one, two)


def test_bfloat16_leaves_stay_bfloat16():
    half = {n: x.astype(jnp.bfloat16) for n, x in STACK.items()}
    anchor = {n: x.astype(jnp.bfloat16) for n, x in BASE.items()}
    merged = ties(half, ROW, base=anchor, density=0.5)
    assert all(x.dtype == jnp.bfloat16 for x in merged.values())
    delta = reference(deltas_of(half, anchor), ROW, 0.5, "model", "unweighted", "mean")
    expected = {n: np.asarray(anchor[n], np.float64) + delta[n] for n in anchor}
    assert_trees_close(merged, expected, rtol=2**-8)


@pytest.mark.parametrize("option", ["coefficients", "density", "scale"])
def test_jit_of_vmap_over_each_number_equals_a_loop(option):
    if option == "coefficients":
        values = jnp.asarray([[0.1, 0.2, 0.7], [1.0, 0.5, 0.5]])
        merge = lambda c: ties(STACK, c, base=BASE)  # noqa: E731
    else:
        values = jnp.asarray([0.0, 0.29, 1.0])
        merge = lambda x: ties(STACK, ROW, base=BASE, **{option: x})  # noqa: E731
    assert_mapped_equals_a_loop(merge, values)


@settings(max_examples=20)
@given(
    density=st.floats(0, 1),
    shape=st.sampled_from([(1, 6), (3, 4)]),
    seed=st.integers(0, 2**16),
)
def test_the_merged_entry_lies_between_zero_and_the_largest_of_its_sign(
    density, shape, seed
):
    deltas = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    merged = of_deltas(deltas, density=density)
    assert np.all(merged <= np.maximum(deltas.max(0), 0) + 1e-6)
    assert np.all(merged >= np.minimum(deltas.min(0), 0) - 1e-6)


def test_unknown_words_and_a_missing_base_are_named():
    with pytest.raises(ValueError, match="trim_scope: 'leaf' is not one of"):
        ties(STACK, ROW, base=BASE, trim_scope="leaf")
    with pytest.raises(ValueError, match="elect: 'all' is not one of"):
        ties(STACK, ROW, base=BASE, elect="all")
    with pytest.raises(ValueError, match="aggregate: 'max' is not one of"):
        ties(STACK, ROW, base=BASE, aggregate="max")
    with pytest.raises(ValueError, match="ties: needs base"):
        ties(STACK, ROW)
