"""A prefix that moves the text behind it, as a cache of keys and values does."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft import attach, init_module, with_module
from tests.peft.hosts import CONFIGS, batch_of, host_of, model_of


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_shifted_text_reads_the_positions_after_the_prefix(family):
    plain = CONFIGS["prefix"]
    module = init_module(plain, host_of(family), jax.random.key(0))
    leaves = trees.flatten(with_module(host_of(family), module.params))
    name = "encoder/embeddings/position/embedding"
    # The same by a table whose rows stand three places earlier.
    earlier = leaves | {name: jnp.roll(leaves[name], -plain.length, axis=0)}
    model = model_of(family)
    shifted = attach(model, replace(plain, shift_positions=True))
    found = shifted.apply(trees.unflatten(leaves), batch_of())["logits"]
    expected = attach(model, plain).apply(trees.unflatten(earlier), batch_of())
    np.testing.assert_allclose(found, expected["logits"], atol=1e-6)
    kept = attach(model, plain).apply(trees.unflatten(leaves), batch_of())["logits"]
    assert np.abs(found - kept).max() > 1e-3


def test_a_text_without_room_behind_the_prefix_is_refused():
    config = replace(CONFIGS["prefix"], shift_positions=True)
    module = init_module(config, host_of(), jax.random.key(0))
    params = with_module(host_of(), module.params)
    model = attach(model_of(), config)
    model.apply(params, batch_of(length=17))
    with pytest.raises(
        ValueError, match="18 tokens a row after a prefix of 3; the host"
    ):
        model.apply(params, batch_of(length=18))
