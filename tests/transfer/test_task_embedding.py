"""TaskEmb against gradients by hand; modules as vectors; what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance as distance

from fusion_jax import trees
from fusion_jax.transfer.modules import module_vectors
from fusion_jax.transfer.pairs import all_pairs
from fusion_jax.transfer.ranking import fused_ranks
from fusion_jax.transfer.task_embedding import (
    component_distances,
    embedding_ranks,
    task_embedding,
)
from fusion_jax.types import Model

RANDOM = np.random.default_rng(4)


def apply(params, batch, *, tap=None, dropout_key=None):
    hidden = jnp.tanh(batch["x"] @ params["encoder"]["layer_0"]["kernel"])
    return {"logits": hidden @ params["head"]["kernel"]}


MODEL = Model(init=lambda key: {}, apply=apply, stages=())
PARAMS = {
    "encoder": {"layer_0": {"kernel": RANDOM.normal(size=(3, 4)).astype(np.float32)}},
    "head": {"kernel": RANDOM.normal(size=(4, 2)).astype(np.float32)},
}


def batches(count=3, rows=5, random=RANDOM):
    mask = np.ones(rows, np.float32)
    mask[-1] = 0
    return [
        {
            "x": random.normal(size=(rows, 3)).astype(np.float32),
            "label": random.integers(0, 2, rows),
            "mask": mask,
        }
        for _ in range(count)
    ]


def test_an_embedding_is_the_sum_of_squared_gradients_of_batches_over_rows():
    given = batches()
    v = PARAMS["head"]["kernel"].astype(np.float64)
    w = PARAMS["encoder"]["layer_0"]["kernel"].astype(np.float64)
    expected = np.zeros((3, 4))
    for batch in given:
        real = batch["mask"] > 0
        x, y = batch["x"][real].astype(np.float64), batch["label"][real]
        hidden = np.tanh(x @ w)
        logits = hidden @ v
        theta = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        back = (theta - np.eye(2)[y]) / len(y)
        expected += (x.T @ ((back @ v.T) * (1 - hidden**2))) ** 2 / 12
    found = task_embedding(MODEL, PARAMS, given, kind="single_label")
    assert list(found) == ["encoder/layer_0/kernel"]
    np.testing.assert_allclose(
        found["encoder/layer_0/kernel"], expected.ravel(), rtol=1e-4, atol=1e-9
    )


def test_components_are_compared_each_by_itself_and_their_ranks_fused():
    names = ("a", "b", "c")
    embeddings = {
        name: {"x": RANDOM.random(6), "y": RANDOM.random(4), "dead": np.zeros(3)}
        for name in names
    }
    found = component_distances(embeddings)
    assert set(found) == {"x", "y"}
    for s, left in enumerate(names):
        for t, right in enumerate(names):
            expected = distance.cosine(embeddings[left]["x"], embeddings[right]["x"])
            assert found["x"][s, t] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(
        embedding_ranks(embeddings, names), fused_ranks(found, names)
    )


def test_embeddings_that_do_not_fit_are_named():
    one = {"x": np.ones(3)}
    with pytest.raises(ValueError, match="embeddings of b have other components"):
        component_distances({"a": one, "b": {"x": np.ones(4)}})
    with pytest.raises(ValueError, match="every component is zero"):
        component_distances({"a": one, "b": {"x": np.zeros(3)}})
    with pytest.raises(ValueError, match="no leaf matches 'adapter'"):
        task_embedding(
            MODEL, PARAMS, batches(), kind="single_label", components="adapter"
        )
    with pytest.raises(ValueError, match="no row of the batches counts"):
        task_embedding(MODEL, PARAMS, [], kind="single_label")
    broken = trees.map_with_names(lambda name, x: x * np.nan, PARAMS)
    with pytest.raises(ValueError, match="not finite in encoder/layer_0/kernel"):
        task_embedding(MODEL, broken, batches(), kind="single_label")


def module(seed, width=3):
    random = np.random.default_rng(seed)
    return {
        "layer_1": {"a": random.normal(size=(width, 2)), "b": random.normal(size=2)},
        "layer_0": {"a": random.normal(size=(2, 2))},
    }


def test_a_module_is_the_vector_of_its_leaves_in_the_order_of_their_names():
    base = module(9)
    modules = {"s": module(0), "t": module(1)}
    found = module_vectors(modules, base=base)
    expected = [
        np.concatenate(
            [
                np.ravel(modules["s"][layer][leaf] - base[layer][leaf])
                for layer, leaf in (
                    ("layer_0", "a"),
                    ("layer_1", "a"),
                    ("layer_1", "b"),
                )
            ]
        )
    ]
    np.testing.assert_allclose(found[:1], expected, atol=1e-6)
    table = all_pairs("module_cosine", found)
    assert table[0, 1] == pytest.approx(distance.cosine(found[0], found[1]), abs=1e-6)
    reordered = {name: dict(reversed(tree.items())) for name, tree in modules.items()}
    np.testing.assert_array_equal(module_vectors(reordered, base=base), found)


def test_modules_that_do_not_fit_are_all_named():
    zero = jax.tree.map(np.zeros_like, module(0))
    infinite = jax.tree.map(lambda x: x * np.inf, module(3))
    with pytest.raises(ValueError, match="cannot be compared") as told:
        module_vectors(
            {"a": module(0), "wide": module(1, 4), "zero": zero, "bad": infinite}
        )
    said = str(told.value)
    assert "wide: layer_1/a differs from a's, 1 leaves in all" in said
    assert "zero: all values are zero" in said
    assert "bad: 12 values are not finite" in said
    with pytest.raises(ValueError, match="base: leaves or shapes"):
        module_vectors({"a": module(0)}, base=module(1, 4))
    with pytest.raises(ValueError, match="no module is given"):
        module_vectors({})
