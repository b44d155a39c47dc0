"""Git Re-Basin: permutations of a network's units are found and undone."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax import stack, trees
from fusion_jax.merging.linear import weighted_average
from fusion_jax.merging.permutation import match, permutation_sizes, permute
from fusion_jax.merging.rebasin import git_rebasin
from tests.merging.task_vectors import assert_trees_close

SPEC = {
    "layer_0/kernel": (None, "hidden_0"),
    "layer_0/bias": ("hidden_0",),
    "layer_1/kernel": ("hidden_0", "hidden_1"),
    "layer_1/bias": ("hidden_1",),
    "layer_2/kernel": ("hidden_1", None),
    "layer_2/bias": (None,),
}


def mlp(seed, sizes=(5, 12, 10, 3), dtype=jnp.float32):
    random = np.random.default_rng(seed)
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(random.normal(size=(a, b)), dtype),
            "bias": jnp.asarray(random.normal(size=b), dtype),
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def outputs(params, x):
    for i in range(2):
        layer = params[f"layer_{i}"]
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params["layer_2"]["kernel"] + params["layer_2"]["bias"]


def shuffles(seed, sizes=(12, 10)):
    random = np.random.default_rng(seed)
    return {f"hidden_{i}": random.permutation(n) for i, n in enumerate(sizes)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("key", [None, 0, 1])
def test_a_shuffled_network_is_put_back_exactly(seed, key):
    params, shuffled = mlp(seed), shuffles(seed)
    other = permute(SPEC, shuffled, params)
    assert not np.array_equal(other["layer_1"]["kernel"], params["layer_1"]["kernel"])
    found = match(SPEC, params, other, key=None if key is None else jax.random.key(key))
    for name, order in found.items():
        np.testing.assert_array_equal(shuffled[name][order], np.arange(len(order)))
    assert_trees_close(
        trees.flatten(permute(SPEC, found, other)), trees.flatten(params), 0, 0
    )


def test_shuffling_units_does_not_change_what_the_network_computes():
    params = mlp(0)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)), jnp.float32)
    np.testing.assert_allclose(
        outputs(permute(SPEC, shuffles(2), params), x), outputs(params, x), atol=1e-4
    )


def test_the_average_of_a_network_and_its_shuffled_copies_is_the_network():
    params = mlp(3)
    experts = stack([params, *(permute(SPEC, shuffles(s), params) for s in (4, 5))])
    c = jnp.asarray([0.25, 0.5, 0.25])
    merged = git_rebasin(experts, c, spec=SPEC, key=jax.random.key(0))
    assert_trees_close(trees.flatten(merged), trees.flatten(params), 1e-6, 1e-6)
    plain = weighted_average(experts, c)
    assert np.abs(plain["layer_1"]["kernel"] - params["layer_1"]["kernel"]).max() > 0.1


def test_experts_of_one_base_are_aligned_already():
    base = mlp(0)
    near = [jax.tree.map(lambda x, s=s: x + 0.01 * s, base) for s in (1.0, -2.0)]
    c = jnp.asarray([0.3, 0.7])
    assert_trees_close(
        trees.flatten(git_rebasin(stack(near), c, spec=SPEC)),
        trees.flatten(weighted_average(stack(near), c)),
        0,
        0,
    )


def test_a_residual_stream_is_one_permutation_of_all_that_write_to_it():
    random = np.random.default_rng(0)
    spec = {
        "embed": (None, "stream"),
        "block/up": ("stream", "inner"),
        "block/down": ("inner", "stream"),
        "block/mix": ("stream", "stream"),
        "head": ("stream", None),
    }
    shapes = {"embed": (9, 6), "head": (6, 4)}
    inside = {"up": (6, 11), "down": (11, 6), "mix": (6, 6)}
    draw = lambda s: jnp.asarray(random.normal(size=s), jnp.float32)  # noqa: E731
    params: Any = {n: draw(s) for n, s in shapes.items()}
    params["block"] = {n: draw(s) for n, s in inside.items()}
    shuffled = {"stream": random.permutation(6), "inner": random.permutation(11)}
    other = permute(spec, shuffled, params)
    np.testing.assert_array_equal(
        other["block"]["mix"],
        np.asarray(params["block"]["mix"])[
            np.ix_(shuffled["stream"], shuffled["stream"])
        ],
    )
    merged = git_rebasin(stack([params, other]), jnp.full(2, 0.5), spec=spec)
    assert_trees_close(trees.flatten(merged), trees.flatten(params), 1e-6, 1e-6)


def test_a_spec_that_does_not_fit_lists_all_faults():
    spec = {**SPEC, "layer_9/bias": (None,), "layer_2/bias": (None, None)}
    spec["layer_1/bias"] = ("hidden_0",)
    del spec["layer_0/bias"]
    with pytest.raises(ValueError) as error:
        permutation_sizes(spec, mlp(0))
    text = str(error.value)
    assert "layer_0/bias: not in the spec" in text
    assert "layer_9/bias: no such leaf" in text
    assert "layer_2/bias: 2 axes in the spec, shape (3,)" in text
    assert "'hidden_0' of different lengths: 12 at" in text
    with pytest.raises(ValueError, match="hidden_1 are missing"):
        permute(SPEC, {"hidden_0": np.arange(12)}, mlp(0))


def test_the_stack_cannot_be_traced_but_coefficients_can():
    experts = stack([mlp(0), mlp(1)])
    with pytest.raises(TypeError, match="not traced"):
        jax.jit(lambda x: git_rebasin(x, jnp.full(2, 0.5), spec=SPEC))(experts)
    rows = jnp.asarray([[0.5, 0.5], [1.0, 0.0]])
    together = jax.jit(jax.vmap(lambda c: git_rebasin(experts, c, spec=SPEC)))(rows)
    for p, row in enumerate(rows):
        one = trees.flatten(jax.tree.map(lambda x, p=p: x[p], together))
        assert_trees_close(one, trees.flatten(git_rebasin(experts, row, spec=SPEC)))
    assert_trees_close(one, trees.flatten(mlp(0)), 0, 0)


def test_dtype_is_kept():
    experts = stack([mlp(0, dtype=jnp.bfloat16), mlp(1, dtype=jnp.bfloat16)])
    merged = git_rebasin(experts, jnp.full(2, 0.5), spec=SPEC)
    assert trees.mismatches([mlp(0, dtype=jnp.bfloat16), merged]) == []


# A few sizes: each is compiled.
@settings(max_examples=20)
@given(st.sampled_from([(1, 4), (7, 2), (6, 6)]), st.integers(0, 99))
def test_alignment_never_makes_two_networks_less_alike(hidden, seed):
    sizes = (3, *hidden, 2)
    a, b = mlp(seed, sizes), mlp(seed + 100, sizes)

    def likeness(other):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(other), strict=True)
        return sum(float(np.vdot(np.asarray(x), np.asarray(y))) for x, y in pairs)

    found = match(SPEC, a, b)
    assert all(sorted(p) == list(range(len(p))) for p in found.values())
    assert likeness(permute(SPEC, found, b)) >= likeness(b) - 1e-4
