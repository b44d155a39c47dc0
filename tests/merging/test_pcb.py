"""PCB against its formula, at the edges of its quantiles, and over scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax import stack, trees
from fusion_jax.merging.pcb import pcb

SHAPES = {"a": {"kernel": (5, 4), "scale": ()}, "b": {"bias": (7,), "one": (1,)}}
C = jnp.asarray([0.2, 0.5, 0.3])


def tree(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * random.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def flat(params):
    leaves = trees.flatten(params)
    return np.concatenate([np.ravel(np.asarray(leaves[n], float)) for n in leaves])


def minmax(x):
    span = x.max() - x.min()
    return (x - x.min()) / span if span else np.zeros_like(x)


def reference(deltas, c, ratio=0.1):
    """The merged task vector, [n], of rows of whole models, [K, n]."""
    num_experts, size = deltas.shape
    total = deltas.sum(0)
    above, below = np.zeros(size), np.zeros(size)
    clipped = int(1e-4 * size)
    for delta, weight in zip(deltas, c, strict=True):
        order = np.sort(abs(delta))
        b = np.clip(abs(delta), order[clipped], order[size - 1 - clipped])
        p = np.exp(num_experts * minmax(b) ** 2) * np.tanh(delta * total)
        line = np.sort(p)[::-1][min(int(ratio * size + 1e-6), size - 2)]
        s = minmax(np.maximum(p, line))
        above += weight * s * np.sign(delta) * b
        below += weight * s
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.9, 1.0])
def test_the_merge_is_that_of_the_formula(ratio):
    base, experts = tree(0), [tree(k, 0.3) for k in (1, 2, 3)]
    deltas = np.stack([flat(e) - flat(base) for e in experts])
    merged = pcb(stack(experts), C, base=base, ratio=ratio, scale=0.7)
    wanted = flat(base) + 0.7 * reference(deltas, np.asarray(C, float), ratio)
    np.testing.assert_allclose(flat(merged), wanted, rtol=1e-5, atol=1e-5)
    assert np.count_nonzero(flat(merged) != flat(base)) >= 1


def test_both_ends_are_clipped_where_there_are_enough_entries():
    random = np.random.default_rng(5)
    deltas = random.normal(size=(2, 20_000)).astype(np.float32)
    deltas[0, :3] = [50, 40, 30]  # two clipped: all three count as 30
    merged = pcb(
        {"w": jnp.asarray(deltas)},
        jnp.asarray([1.0, 0.0]),
        base={"w": jnp.zeros(20_000)},
    )["w"]
    wanted = reference(deltas.astype(float), [1, 0])
    np.testing.assert_allclose(merged, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(merged[:3], [30, 30, 30])


def test_exactly_the_ratio_of_entries_count():
    deltas = jnp.asarray(np.random.default_rng(1).normal(size=(1, 100)))
    merged = pcb({"w": deltas}, jnp.ones(1), base={"w": jnp.zeros(100)}, ratio=0.29)
    assert np.count_nonzero(merged["w"]) == 29


def test_an_expert_that_opposes_all_others_has_a_negative_line():
    deltas = np.random.default_rng(2).uniform(0.1, 1, size=(3, 40))
    deltas[2] = -0.3 * deltas[2]
    merged = pcb(
        {"w": jnp.asarray(deltas, jnp.float32)},
        jnp.asarray([0.0, 0.0, 1.0]),
        base={"w": jnp.zeros(40)},
    )["w"]
    wanted = reference(deltas, [0, 0, 1])
    assert np.count_nonzero(wanted) == 4
    np.testing.assert_allclose(merged, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
@pytest.mark.parametrize("size", [1, 2, 6])
def test_constant_vectors_have_no_competition_and_keep_the_base(value, size):
    experts = {"w": jnp.full((3, size), 2 + value)}
    merged = pcb(experts, C, base={"w": jnp.full(size, 2.0)})
    np.testing.assert_array_equal(merged["w"], np.full(size, 2.0))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-4])
def test_a_multiple_of_small_deltas_gives_that_multiple(scale):
    deltas = np.random.default_rng(3).normal(size=(3, 60))
    zero = {"w": jnp.zeros(60)}
    one = pcb({"w": jnp.asarray(1e-3 * deltas, jnp.float32)}, C, base=zero)["w"]
    other = pcb({"w": jnp.asarray(scale * deltas, jnp.float32)}, C, base=zero)["w"]
    assert np.count_nonzero(one) > 5
    np.testing.assert_allclose(other / scale, one / 1e-3, rtol=2e-4, atol=1e-5)


def test_many_experts_do_not_overflow():
    delta = jnp.linspace(0.01, 1, 40)
    merged = pcb(
        {"w": jnp.tile(delta, (100, 1))}, jnp.ones(100), base={"w": jnp.zeros(40)}
    )["w"]
    np.testing.assert_allclose(merged[-4:], delta[-4:], rtol=1e-6)
    np.testing.assert_array_equal(merged[:-4], np.zeros(36))


def test_dtypes_are_kept_and_integers_copied():
    base = {"w": jnp.zeros(6, jnp.bfloat16), "steps": jnp.asarray(3)}
    experts = {
        "w": jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.bfloat16),
        "steps": jnp.asarray([3, 3]),
    }
    merged = pcb(experts, jnp.ones(2), base=base)
    assert trees.mismatches([base, merged]) == []
    assert merged["steps"] == 3


@pytest.mark.parametrize("option", ["coefficients", "ratio", "scale"])
def test_jit_of_vmap_equals_a_loop(option):
    base, experts = tree(0), stack([tree(k) for k in (1, 2, 3)])
    values = {
        "coefficients": jnp.asarray([[1.0, 0, 0], [0.2, 0.5, 0.3], [0, 0, 0]]),
        "ratio": jnp.asarray([0.05, 0.4, 1.0]),
        "scale": jnp.asarray([0.0, 1.0, 2.0]),
    }[option]

    def merge(value):
        options = {"coefficients": C, option: value}
        return pcb(experts, base=base, **options)

    merged = jax.jit(jax.vmap(merge))(values)
    for i, value in enumerate(values):
        one = jax.tree.map(lambda x, i=i: x[i], merged)
        np.testing.assert_allclose(flat(one), flat(merge(value)), rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([2, 5, 12]).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(-4, 4), min_size=n, max_size=n),
            min_size=1,
            max_size=3,
        )
    )
)
def test_every_merged_entry_lies_among_those_of_the_experts(rows):
    deltas = np.asarray(rows, np.float32)
    merged = pcb(
        {"w": jnp.asarray(deltas)},
        jnp.ones(len(rows)),
        base={"w": jnp.zeros(deltas.shape[1])},
        ratio=0.5,
    )["w"]
    low, high = np.minimum(deltas.min(0), 0), np.maximum(deltas.max(0), 0)
    assert np.all(merged >= low - 1e-5)
    assert np.all(merged <= high + 1e-5)
