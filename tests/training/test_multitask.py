"""Several tasks in one training: the batches of all, one head for each."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.data.batches import TrainBatches
from fusion_jax.evaluation.losses import LOSSES, mixed
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import fit
from fusion_jax.training.multitask import MixedBatches, join_heads, multitask_model
from fusion_jax.types import Model

ROWS = {"few": 7, "many": 22, "pairs": 9}
KINDS = {"few": "single_label", "many": "single_label", "pairs": "multi_label"}
CLASSES = {"few": 2, "many": 3, "pairs": 3}


def as_multi_label(encoded):
    """The same rows with the class and its neighbour as the target."""
    label = encoded.targets["label"]
    labels = np.eye(3, dtype=np.float32)[label] + np.eye(3, dtype=np.float32)[label - 1]
    return encoded.__class__(
        **{
            **vars(encoded),
            "kind": "multi_label",
            "targets": {"labels": labels},
            "references": [tuple(np.flatnonzero(row)) for row in labels],
        }
    )


@pytest.fixture
def members(splits):
    """Batches of three tasks; a head has as many columns as its kind's largest."""
    found = {}
    for number, (name, rows) in enumerate(ROWS.items()):
        encoded = splits(rows, number, classes=CLASSES[name])
        if KINDS[name] == "multi_label":
            encoded = as_multi_label(encoded)
        found[name] = TrainBatches(
            encoded, 4, seed=number, buckets=(8, 16), num_labels=3
        )
    return found


@pytest.fixture
def batches(members):
    return MixedBatches(members, KINDS, seed=5)


def tree_of(model, name):
    """One encoder for all, a head of the task's own."""
    encoder = model.init(jax.random.key(0))["encoder"]
    own = model.init(jax.random.key(sum(map(ord, name))))["head"]
    return {"encoder": encoder, "head": own}


@pytest.fixture
def joint(model):
    """(model of all tasks, its parameters, task -> parameters)."""
    own = {name: tree_of(model, name) for name in ROWS}
    return (
        multitask_model(dict.fromkeys(KINDS.values(), model)),
        join_heads(own, KINDS),
        own,
    )


def test_a_batch_is_a_pure_function_of_the_step(batches, members):
    again = MixedBatches(members, KINDS, seed=5)
    for step in (17, 3, 0, 3, 25):
        one, other = batches.batch(step), again.batch(step)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_every_batch_of_every_task_comes_once_an_epoch(batches, members):
    steps = {name: member.steps_per_epoch for name, member in members.items()}
    assert batches.steps_per_epoch == sum(steps.values()) == 2 + 6 + 3
    for epoch in range(3):
        expected = collections.Counter(
            fingerprint(member.batch(epoch * steps[name] + position))
            for name, member in members.items()
            for position in range(steps[name])
        )
        start = epoch * batches.steps_per_epoch
        found = collections.Counter(
            fingerprint(batches.batch(start + position))
            for position in range(batches.steps_per_epoch)
        )
        assert found == expected


def test_the_order_of_the_tasks_changes_with_epoch_and_seed(batches, members):
    other = MixedBatches(members, KINDS, seed=6)
    size = batches.steps_per_epoch
    first = kinds_in_order(batches, range(size))
    assert first != kinds_in_order(batches, range(size, 2 * size))
    assert first != kinds_in_order(other, range(size))


def test_a_batch_names_the_place_of_its_head_within_its_kind(batches):
    seen = set()
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        kind = "multi_label" if "labels" in batch else "single_label"
        assert batch["task"].dtype == np.int32 and batch["task"].shape == ()
        seen.add((kind, int(batch["task"]), int(batch["label_mask"].sum())))
    assert seen == {
        ("single_label", 0, 2),
        ("single_label", 1, 3),
        ("multi_label", 0, 3),
    }


def test_outputs_are_those_of_each_task_s_own_model(joint, members, model):
    together, params, own = joint
    places = {"few": 0, "many": 1, "pairs": 0}
    for name, member in members.items():
        batch = {**member.batch(1), "task": np.int32(places[name])}
        found = together.apply(params, batch)["logits"]
        alone = model.apply(own[name], batch)["logits"]
        np.testing.assert_array_equal(found, alone)


def test_padded_columns_of_a_head_change_no_loss(joint, members, model):
    together, params, own = joint
    batch = {**members["few"].batch(0), "task": np.int32(0)}
    assert batch["label_mask"].tolist() == [1, 1, 0]
    narrow = {
        "encoder": own["few"]["encoder"],
        "head": jax.tree.map(lambda x: x[..., :2], own["few"]["head"]),
    }
    bare = {name: x for name, x in batch.items() if name not in ("label_mask", "task")}
    expected = LOSSES["single_label"](model.apply(narrow, bare), bare)
    found = mixed(together.apply(params, batch), batch)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    def total(heads):
        whole = {"encoder": params["encoder"], "head": heads}
        return mixed(together.apply(whole, batch), batch).sum()

    gradient = jax.grad(total)(params["head"])["single_label"]["classifier"]
    assert np.abs(gradient["kernel"][0, :, :2]).max() > 0
    assert np.abs(gradient["kernel"][0, :, 2]).max() == 0
    assert np.abs(gradient["kernel"][1]).max() == 0


def test_heads_of_one_kind_are_stacked_and_the_encoder_is_held_once(joint):
    _, params, own = joint
    kernel = params["head"]["single_label"]["classifier"]["kernel"]
    assert kernel.shape[0] == 2
    np.testing.assert_array_equal(
        kernel[1], own["many"]["head"]["classifier"]["kernel"]
    )
    assert trees.mismatches([params["encoder"], own["few"]["encoder"]]) == []


def test_a_leaf_that_only_some_encoders_have_is_kept(model):
    own = {name: tree_of(model, name) for name in ("few", "pairs")}
    pooler = {"kernel": jnp.ones((2, 2))}
    own["pairs"]["encoder"] = {**own["pairs"]["encoder"], "pooler": pooler}
    found = join_heads(own, {"few": "single_label", "pairs": "multi_label"})
    assert "encoder/pooler/kernel" in trees.flatten(found)


def test_heads_of_unequal_width_are_refused_by_task_and_leaf(model):
    own = {name: tree_of(model, name) for name in ("few", "many")}
    own["few"]["head"] = jax.tree.map(lambda x: x[..., :2], own["few"]["head"])
    with pytest.raises(trees.TreeMismatch, match=r"classifier/bias.*few.*many"):
        join_heads(own, {"few": "single_label", "many": "single_label"})


def test_training_all_lowers_the_loss_of_all(joint, batches):
    together, params, _ = joint
    assert isinstance(together, Model) and together.stages == ()
    config = FitConfig(epochs=6, learning_rate=0.02, select="last", frozen=())
    result = fit(
        together,
        params,
        batches,
        None,
        config,
        kind="mixed",
        metrics=("accuracy",),
        progress=False,
    )
    losses = [record["train_loss"] for record in result.history]
    assert losses[-1] < losses[0]
    with pytest.raises(TypeError, match="join_heads"):
        together.init(jax.random.key(0))


def fingerprint(batch):
    """The batch without 'task', hashable."""
    return tuple(
        (name, np.asarray(x).tobytes())
        for name, x in sorted(batch.items())
        if name != "task"
    )


def kinds_in_order(batches, steps):
    return [
        ("labels" in batch, int(batch["task"]))
        for batch in (batches.batch(step) for step in steps)
    ]
