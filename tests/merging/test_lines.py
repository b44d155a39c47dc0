"""LiNeS against its formula, its count of layers, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax import stack, trees
from fusion_jax.merging.lines import lines, lines_form

C = jnp.asarray([0.6, 1.0, -0.5])


def tree(seed, dtype=jnp.float32, scale=1.0):
    random = np.random.default_rng(seed)
    draw = lambda *s: jnp.asarray(scale * random.normal(size=s), dtype)  # noqa: E731
    return {
        "embeddings": {"kernel": draw(4, 3)},
        "encoder": {
            "layer_0": {"kernel": draw(3, 3), "bias": draw(1)},
            "layer_2": {"scale": draw(), "frozen": jnp.full(2, scale, dtype)},
        },
        "head": {"constant": jnp.full((2, 2), scale * seed, dtype)},
        "steps": jnp.asarray(7),
    }


def leaves(params):
    return {n: np.asarray(x, float) for n, x in trees.flatten(params).items()}


def reference(experts, base, c, alpha, beta, depth):
    """The merged leaves in float64; depth: name -> l / (L - 1), or None."""
    anchor, rows = leaves(base), [leaves(e) for e in experts]
    names = [n for n in anchor if n != "steps"]
    merged, plain, size = {}, 0.0, 0.0
    for name in names:
        deltas = [row[name] - anchor[name] for row in rows]
        merged[name] = sum(w * d for w, d in zip(c, deltas, strict=True))
        plain += abs(np.sum(deltas, axis=0)).sum()
        size += abs(merged[name]).sum()
    if alpha is None:
        alpha = plain / size / len(experts)
    return {n: anchor[n] + (alpha + beta * (depth(n) or 0)) * merged[n] for n in names}


def third(name):
    return (
        {"layer_0": 0.0, "layer_2": 1.0}.get(name.split("/")[1]) if "/" in name else 0
    )


def assert_close(merged, wanted, **tolerance):
    merged = leaves(merged)
    for name, x in wanted.items():
        np.testing.assert_allclose(merged[name], x, err_msg=name, **tolerance)


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_the_merge_is_that_of_the_formula(alpha):
    base, experts = tree(0), [tree(k) for k in (1, 2, 3)]
    merged = lines(stack(experts), C, base=base, alpha=alpha, beta=0.8)
    wanted = reference(experts, base, np.asarray(C, float), alpha, 0.8, third)
    assert_close(merged, wanted, rtol=1e-5, atol=1e-6)
    assert merged["steps"] == 7


def test_the_layers_between_get_their_share():
    names = ["layer_0/w", "layer_1/w", "layer_4/w", "w"]
    experts = trees.unflatten({n: jnp.ones((1, 1)) for n in names})
    base = jax.tree.map(lambda x: jnp.zeros_like(x[0]), experts)
    pattern = r".*layer_(\d+)/.*"
    merged = trees.flatten(
        lines(
            experts, jnp.ones(1), base=base, alpha=1.0, beta=2.0, layer_pattern=pattern
        )
    )
    wanted = dict(zip(names, [1, 1.5, 3, 1], strict=True))
    for name, x in wanted.items():
        np.testing.assert_allclose(merged[name], [x], rtol=1e-6)


@pytest.mark.parametrize("names", [["layer_0/w", "w"], ["a", "b"]])
def test_one_layer_or_none_gets_alpha(names):
    experts = trees.unflatten({n: jnp.ones((1, 2)) for n in names})
    base = jax.tree.map(lambda x: jnp.zeros_like(x[0]), experts)
    merged = lines(experts, jnp.ones(1), base=base, alpha=0.25, beta=2.0)
    for x in jax.tree.leaves(merged):
        np.testing.assert_array_equal(x, [0.25, 0.25])


def test_numbers_elsewhere_in_a_name_are_not_layers():
    names = ["h.1.attn.0.w", "h.3.attn.9.w", "head.7.w"]
    experts = {n: jnp.ones((1, 1)) for n in names}
    base = {n: jnp.zeros(1) for n in names}
    merged = lines(
        experts,
        jnp.ones(1),
        base=base,
        alpha=0.0,
        beta=3.0,
        layer_pattern=r"h\.(\d+)\..*",
    )
    np.testing.assert_allclose([merged[n][0] for n in names], [1, 3, 0], rtol=1e-6)


def test_without_alpha_a_multiple_of_all_coefficients_leaves_the_first_layer():
    base, experts = tree(0), stack([tree(k) for k in (1, 2, 3)])
    mean = lines(experts, jnp.full(3, 1 / 3), base=base, beta=0.0)
    total = lines(experts, jnp.ones(3), base=base, beta=0.0)
    average = {n: x.mean(0) for n, x in leaves(experts).items() if n != "steps"}
    assert_close(mean, average, rtol=1e-5, atol=1e-6)
    assert_close(total, average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r".*layer_\d+/.*", "has 0 groups"),
        (r"(.*)layer_(\d+)/.*", "has 2 groups"),
    ],
)
def test_a_pattern_without_one_group_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        lines_form(layer_pattern=pattern)


@pytest.mark.parametrize("name", ["layer_x/w", "layer_1024/w"])
def test_a_layer_that_is_no_number_is_refused(name):
    experts = trees.unflatten({name: jnp.ones((1, 2))})
    base = jax.tree.map(lambda x: x[0], experts)
    with pytest.raises(ValueError, match=r"is not a number below 1024"):
        lines(experts, jnp.ones(1), base=base, layer_pattern=r"layer_(\w+)/.*")


def test_dtypes_are_kept():
    base = tree(0, jnp.bfloat16)
    experts = stack([tree(k, jnp.bfloat16) for k in (1, 2, 3)])
    assert trees.mismatches([base, lines(experts, C, base=base)]) == []


@pytest.mark.parametrize("option", ["coefficients", "alpha", "beta"])
def test_jit_of_vmap_equals_a_loop(option):
    base, experts = tree(0), stack([tree(k) for k in (1, 2, 3)])
    values = {
        "coefficients": jnp.asarray([[1.0, 0, 0], [0.2, 0.5, 0.3], [0, 0, 0]]),
        "alpha": jnp.asarray([0.0, 0.3, 1.0]),
        "beta": jnp.asarray([0.0, 0.3, 1.0]),
    }[option]

    def merge(value):
        return lines(experts, base=base, **{"coefficients": C, option: value})

    merged = jax.jit(jax.vmap(merge))(values)
    for i, value in enumerate(values):
        one = jax.tree.map(lambda x, i=i: x[i], merged)
        assert_close(one, leaves(merge(value)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0])
def test_gradients_are_finite_and_those_of_the_formula(scale):
    base = tree(0, scale=scale)
    experts = [tree(k, scale=scale) for k in (1, 2, 3)]
    random = np.random.default_rng(9)
    marks = {n: random.normal(size=x.shape) for n, x in leaves(base).items()}

    def total(c):
        merged = trees.flatten(lines(stack(experts), c, base=base))
        return sum(jnp.sum(marks[n] * x) for n, x in merged.items() if n != "steps")

    def exact(c):
        merged = reference(experts, base, c, None, 0.5, third)
        return sum((marks[n] * x).sum() for n, x in merged.items())

    gradient = np.asarray(jax.grad(total)(C), float)
    if scale == 0:
        np.testing.assert_array_equal(gradient, np.zeros(3))
        return
    middle, step = np.asarray(C, float), 1e-5
    for k, shift in enumerate(step * np.eye(3)):
        slope = (exact(middle + shift) - exact(middle - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[k] / scale, slope / scale, rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=5, max_size=5), min_size=1),
    st.sampled_from([2.0**-90, 0.5, 2.0**20]),
)
def test_a_multiple_of_the_deltas_gives_that_multiple(rows, factor):
    deltas = jnp.asarray(rows, jnp.float32)
    base = {"layer_0": {"w": jnp.zeros(5)}}
    ones = jnp.ones(len(rows))
    one = lines({"layer_0": {"w": deltas}}, ones, base=base)
    other = lines({"layer_0": {"w": factor * deltas}}, ones, base=base)
    np.testing.assert_allclose(
        other["layer_0"]["w"] / factor, one["layer_0"]["w"], rtol=1e-6
    )
