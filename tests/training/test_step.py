"""Properties of the train step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fusion_jax.data.batches import TrainBatches
from fusion_jax.training.config import FROZEN_EMBEDDINGS, FitConfig
from fusion_jax.training.loop import expert_keys
from fusion_jax.training.sharding import default_mesh, place, replicated, shardings
from fusion_jax.training.state import create_state
from fusion_jax.training.step import loss_and_gradients, make_train_step
from fusion_jax.trees import combine, flatten, partition, stack

RULES = ((".*", PartitionSpec()),)


@pytest.fixture
def batch(splits):
    source = TrainBatches(splits(30, 3), 12, seed=0, buckets=(16,))
    return jax.tree.map(jnp.asarray, source.batch(2))  # the last: 6 rows, 6 padding


@pytest.fixture
def parts(params):
    shared, trained = partition(params, FROZEN_EMBEDDINGS)
    return trained, shared


def run(model, trained, shared, batches, config, *, active=None, one_batch=True):
    mesh = default_mesh()
    size = len(trained)
    tree = stack(trained)
    where = shardings(tree, RULES, mesh, stacked=True)
    state = create_state(place(tree, where), config, RULES, mesh)
    step = make_train_step(model, "single_label", config, state, one_batch=one_batch)
    lanes = place(
        {
            "key": expert_keys(0, [f"expert_{k}" for k in range(size)]),
            "total": np.full(size, len(batches), np.int32),
            "rate": np.full(size, config.learning_rate, np.float32),
        },
        replicated(mesh),
    )
    losses = []
    for one in batches:
        state, loss = step(state, {}, shared, one, lanes, active)
        losses.append(np.asarray(loss))
    return state, np.array(losses)


def test_the_loss_is_the_mean_over_real_rows(model, parts, batch):
    trained, shared = parts
    loss, _ = loss_and_gradients(model.apply, "single_label", trained, shared, batch)
    logits = np.asarray(model.apply(combine(*parts), batch)["logits"], np.float64)
    terms = np.log(np.exp(logits).sum(-1)) - logits[np.arange(12), batch["label"]]
    real = np.asarray(batch["mask"]) > 0
    assert 0 < real.sum() < 12
    np.testing.assert_allclose(loss, terms[real].mean(), rtol=1e-6)


@pytest.mark.parametrize("slices", [2, 3, 12])
def test_accumulation_does_not_change_the_gradient(model, parts, batch, slices):
    trained, shared = parts
    whole = loss_and_gradients(model.apply, "single_label", trained, shared, batch)
    sliced = loss_and_gradients(
        model.apply, "single_label", trained, shared, batch, slices
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        whole,
        sliced,
    )


def test_slices_must_divide_the_rows(model, parts, batch):
    with pytest.raises(ValueError, match="accumulate = 5 does not divide the 12 rows"):
        loss_and_gradients(model.apply, "single_label", *parts, batch, 5)


def test_padding_rows_do_not_matter(model, parts, batch, largest_difference):
    trained, shared = parts
    other = dict(batch)
    other["label"] = jnp.where(batch["mask"] > 0, batch["label"], 2)
    other["input_ids"] = jnp.where(batch["mask"][:, None] > 0, batch["input_ids"], 7)
    one, two = (
        loss_and_gradients(model.apply, "single_label", trained, shared, b)[1]
        for b in (batch, other)
    )
    assert largest_difference(one, two) == 0


def test_frozen_leaves_have_neither_gradient_nor_moments(model, parts, batch):
    trained, shared = parts
    state, _ = run(model, [trained], shared, [batch], FitConfig())
    assert not any("embeddings" in name for name in flatten(state["params"]))
    size = sum(x.size for x in jax.tree.leaves(trained))
    moments = [x for x in jax.tree.leaves(state["opt_state"]) if x.ndim > 1]
    assert sum(x.size for x in moments) == 2 * size


def test_a_stack_of_experts_steps_like_each_alone(model, parts, batch, splits):
    trained, shared = parts
    starts = [trained, jax.tree.map(lambda x: x * 1.1 + 0.01, trained)]
    config = FitConfig(learning_rate=0.05)
    together, losses = run(model, starts, shared, [batch] * 4, config)
    for k, start in enumerate(starts):
        alone, loss = run(model, [start], shared, [batch] * 4, config)
        np.testing.assert_allclose(losses[:, k], loss[:, 0], rtol=1e-5)
        jax.tree.map(
            lambda a, b, k=k: np.testing.assert_allclose(a[k], b[0], atol=1e-5),
            together["params"],
            alone["params"],
        )


def test_a_paused_expert_keeps_its_whole_state(model, parts, batch):
    trained, shared = parts
    active = jnp.array([True, False])
    state, _ = run(
        model, [trained, trained], shared, [batch], FitConfig(), active=active
    )
    assert np.asarray(state["step"]).tolist() == [1, 0]
    for name, start in flatten(trained).items():
        np.testing.assert_array_equal(flatten(state["params"])[name][1], start)
        assert not np.array_equal(flatten(state["params"])[name][0], start)
    for leaf in jax.tree.leaves(state["opt_state"]):
        assert not np.asarray(leaf[1]).any()


def test_the_first_step_that_is_not_finite_is_remembered(model, parts, batch):
    trained, shared = parts
    broken = jax.tree.map(lambda x: x * jnp.nan, trained)
    state, _ = run(model, [trained, broken], shared, [batch] * 3, FitConfig())
    assert np.asarray(state["bad_step"]).tolist() == [-1, 0]


def test_dropout_depends_on_expert_and_step_alone(model, parts, batch):
    trained, shared = parts
    config = FitConfig(dropout=True, learning_rate=1e-9)
    _, losses = run(model, [trained, trained], shared, [batch] * 2, config)
    assert len(set(losses.ravel().tolist())) == 4
    _, alone = run(model, [trained], shared, [batch] * 2, config)
    np.testing.assert_allclose(alone[:, 0], losses[:, 0], rtol=1e-6)


def test_the_next_fit_of_a_model_compiles_nothing_again(model, parts, batch):
    trained, shared = parts
    run(model, [trained], shared, [batch], FitConfig(learning_rate=1e-3))
    with jax.log_compiles(False):
        before = _compilations()
        run(model, [trained], shared, [batch], FitConfig(learning_rate=2e-3, epochs=9))
        assert _compilations() == before


def _compilations():
    from fusion_jax.training import step

    return (
        step._gradient_program.cache_info().misses,
        step._update_program.cache_info().misses,
    )
