"""Fishers of embedding tables from the rows that were looked up."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.models import build_model
from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.layers import Table
from fusion_jax.models.tapping import hooked
from fusion_jax.training.fisher import collect_fisher
from fusion_jax.training.lookups import add_rows, lookups, squared_rows
from fusion_jax.trees import flatten
from fusion_jax.types import Model

FAMILIES = ("bert", "roberta", "distilbert", "gpt2")


def small(family):
    return EncoderConfig(
        family=family,
        vocab_size=23,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=12,
        max_positions=16,
        type_vocab_size=2 if family == "bert" else 0,
        pad_token_id=1 if family == "roberta" else 0,
    )


def rows_of(seed, rows=5, tokens=7):
    """Few words, so that a row repeats them, and padding on the right."""
    random = np.random.default_rng(seed)
    mask = np.arange(tokens) < random.integers(2, tokens + 1, (rows, 1))
    ids = np.where(mask, random.integers(2, 6, (rows, tokens)), 1)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": random.integers(0, 2, (rows, tokens)),
        "label": random.integers(0, 3, rows),
        "index": np.arange(rows),
    }
    return {name: x.astype(np.int32) for name, x in batch.items()}


def without_hooks(model):
    """The same model, every table of which is differentiated whole."""

    def apply(params, batch):
        return model.apply(params, batch)

    return Model(model.init, apply, model.stages)


@pytest.mark.parametrize(
    ("family", "estimator", "chunk"),
    [
        ("bert", "true", 1),
        ("bert", "true", 3),
        ("gpt2", "sampled", 1),
    ],
)
def test_fishers_are_those_of_whole_tables(family, estimator, chunk):
    model = build_model(small(family), "single_label", 3)
    params = jax.tree.map(lambda x: 5 * x, jax.jit(model.init)(jax.random.key(1)))
    batches = [rows_of(0)]
    options = {
        "kind": "single_label",
        "estimator": estimator,
        "chunk": chunk,
        "key": jax.random.key(2),
    }
    found, count = collect_fisher(model, params, batches, **options)
    whole, same_count = collect_fisher(without_hooks(model), params, batches, **options)
    assert count == same_count == 5
    assert flatten(found).keys() == flatten(whole).keys()
    for name, x in flatten(whole).items():
        np.testing.assert_allclose(
            flatten(found)[name], x, rtol=2e-5, atol=2e-6 * x.max(), err_msg=name
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tables_of_every_family_are_found(family):
    model = build_model(small(family), "single_label", 3)
    params = jax.jit(model.init)(jax.random.key(0))
    tables = {name for name in flatten(params) if name.endswith("/embedding")}
    found = lookups(model.apply, params, rows_of(0))
    assert found.keys() == tables
    assert found["encoder/embeddings/word/embedding"].shape == (5, 7, 8)
    assert lookups(without_hooks(model).apply, params, rows_of(0)) == {}


class Reads(nn.Module):
    """A table that is read once, twice, or by the output layer, too."""

    how: str

    @nn.compact
    def __call__(self, ids):
        table = Table(9, 4, name="word")
        x = table(ids)
        if self.how == "twice":
            x = x + table(ids + 1)
        x = x.sum(1)
        if self.how == "tied":
            return x @ table.variables["params"]["embedding"].T
        return x


@pytest.mark.parametrize("how", ["once", "twice", "tied"])
def test_a_table_that_is_read_otherwise_is_left_whole(how):
    module = Reads(how)

    def apply(params, batch, *, around=None):
        with hooked(None, around, ""):
            logits: Any = module.apply({"params": params}, batch["input_ids"])
            return {"logits": logits}

    batch = {
        "input_ids": np.array([[1, 2, 1]], np.int32),
        "attention_mask": np.ones((1, 3), np.int32),
    }
    params = module.init(jax.random.key(0), batch["input_ids"])["params"]
    found = lookups(apply, params, batch)
    assert found.keys() == ({"word/embedding"} if how == "once" else set())
    hooks = Model(lambda key: params, apply, ())
    fishers = [
        collect_fisher(m, params, [batch], kind="single_label")[0]["word"]["embedding"]
        for m in (hooks, without_hooks(hooks))
    ]
    np.testing.assert_allclose(*fishers, rtol=1e-5, atol=1e-7)
    assert fishers[0][1].any() and fishers[0][2].any()


@given(
    st.lists(st.integers(0, 5), min_size=6, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_the_squares_of_a_scattered_gradient(ids, seed):
    ids = np.array(ids)
    gradient = np.random.default_rng(seed).normal(size=(len(ids), 3))
    whole = np.zeros((6, 3))
    np.add.at(whole, ids, gradient)
    rows = squared_rows(jnp.asarray(ids), jnp.asarray(gradient, jnp.float32))
    found = add_rows(jnp.zeros((6, 3)), jnp.asarray(ids), rows)
    np.testing.assert_allclose(found, whole**2, rtol=1e-5, atol=1e-6)
