"""Float64 references that the tests of task-vector methods share, in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.merging.form import Block
from fusion_jax.merging.masks import leaf_keys, uniform

SHAPES = {"matrix": (6, 5), "vector": (7,), "scalar": (), "single": (1, 1)}


def experts_and_base(seed=0, num_experts=3, shapes=None, scale=0.1):
    """Random trees, with a leaf that nobody changed and one all changed alike."""
    random = np.random.default_rng(seed)
    shapes = dict(shapes or SHAPES)
    base = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    stack = {
        n: base[n] + scale * random.normal(size=(num_experts, *s)).astype(np.float32)
        for n, s in shapes.items()
    }
    base["frozen"] = np.full((3, 4), 0.5, np.float32)
    stack["frozen"] = np.full((num_experts, 3, 4), 0.5, np.float32)
    base["constant"] = np.full(4, 0.25, np.float32)
    stack["constant"] = np.full((num_experts, 4), 0.375, np.float32)
    to_jax = lambda tree: {n: jnp.asarray(x) for n, x in tree.items()}  # noqa: E731
    return to_jax(stack), to_jax(base)


def deltas_of(stack, base):
    return {
        n: np.asarray(stack[n], np.float64) - np.asarray(base[n], np.float64)
        for n in stack
    }


def combined(deltas, coefficients, elect, aggregate, zero_sign=1.0):
    """Entry by entry, expert by expert."""
    deltas = np.asarray(deltas, np.float64)
    flat = deltas.reshape(len(deltas), -1)
    out = np.zeros(flat.shape[1])
    for i in range(flat.shape[1]):
        vote = 0.0
        for k, d in enumerate(flat[:, i]):
            vote += d * (coefficients[k] if elect == "weighted" else 1.0)
        sign = np.sign(vote) if vote != 0 else zero_sign
        share = 0.0
        for k, d in enumerate(flat[:, i]):
            if elect == "none" or d * sign > 0:
                out[i] += coefficients[k] * d
                share += coefficients[k]
        if aggregate == "mean":
            out[i] = out[i] / share if share else 0.0
    return out.reshape(deltas.shape[1:])


def draws(key, name, leaf):
    """The uniform numbers [K, ...] that a method sees for one leaf."""
    keys = leaf_keys(key, name, len(leaf))
    shape = leaf.shape[1:]
    return np.asarray(
        uniform(
            Block(
                leaf,
                None,
                jnp.ones(len(leaf)),
                0,
                keys,
                None,
                leaf[0].size,
                shape,
                name,
            )
        )
    )


def assert_trees_close(one, two, rtol=1e-5, atol=1e-6):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(
            np.asarray(one[name], np.float64),
            np.asarray(two[name], np.float64),
            rtol=rtol,
            atol=atol,
            err_msg=name,
        )


def assert_mapped_equals_a_loop(merge, mapped):
    """`merge(value)` under jit and vmap over the leading axis of `mapped`."""
    together = jax.jit(jax.vmap(merge))(mapped)
    for p in range(len(jax.tree.leaves(mapped)[0])):
        alone = merge(jax.tree.map(lambda x, p=p: x[p], mapped))
        assert_trees_close(jax.tree.map(lambda x, p=p: x[p], together), alone)
