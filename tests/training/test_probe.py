"""A head on a frozen encoder: as fit with head epochs, at a fraction of the passes."""

import jax
import numpy as np
import pytest

from fusion_jax.data.batches import eval_batches
from fusion_jax.data.encoded import hash_encoded
from fusion_jax.evaluation.readout import make_reader, read
from fusion_jax.models import EncoderConfig, build_model
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import fit
from fusion_jax.training.probe import fit_head, with_features
from fusion_jax.trees import flatten
from fusion_jax.types import Model
from tests.training.conftest import VOCABULARY, make_split

BUCKETS = (8, 16)
CONFIG = FitConfig(
    epochs=0, head_epochs=4, head_learning_rate=0.05, batch_size=8, buckets=BUCKETS
)
OPTIONS = {"kind": "single_label", "progress": False}
# A pooler stands before the head of the one, a final norm before that of the other.
TYPES = {"bert": 2, "gpt2": 0}


def build(family="bert", labels=3, kind="single_label"):
    config = EncoderConfig(
        family, VOCABULARY, 16, 2, 4, 24, 24, TYPES[family], pad_token_id=0
    )
    model = build_model(config, kind, labels)
    return model, model.init(jax.random.key(1))


@pytest.mark.parametrize("family", sorted(TYPES))
def test_it_is_the_fit_of_head_epochs_on_the_frozen_encoder(
    family, splits, largest_difference
):
    model, params = build(family)
    train, dev = splits(37, 0), splits(20, 1)
    slow = fit(model, params, train, dev, CONFIG, **OPTIONS)
    fast = fit_head(model, params, train, dev, CONFIG, **OPTIONS)
    assert largest_difference(fast.params, slow.params) < 1e-5
    assert largest_difference(fast.params, params) > 1e-3
    assert fast.best_epoch == slow.best_epoch
    for one, other in zip(fast.history, slow.history, strict=True):
        assert one["dev"] == pytest.approx(other["dev"])
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


def test_all_but_the_head_stays_to_the_bit(splits):
    model, params = build()
    found = flatten(
        fit_head(model, params, splits(16, 0), None, CONFIG, **OPTIONS).params
    )
    for name, leaf in flatten(params).items():
        same = np.array_equal(leaf, found[name])
        assert same != name.startswith("head/"), name


def test_kinds_that_read_every_token_keep_the_states_of_all(splits):
    """A head over tokens: rows are as long as they are, batches padded with zeros."""
    model, params = build(kind="token")
    rows = splits(11, 0)
    seen = with_features(model, params, rows, buckets=BUCKETS)
    assert [len(x) for x in seen.features] == list(rows.lengths)
    [batch] = eval_batches(seen, tokens_per_batch=4096, buckets=(16,))
    assert batch["features"].shape == (16, 16, 16)
    head = model.stages[-1].apply(params, batch["features"], batch)["logits"]
    [plain] = eval_batches(rows, tokens_per_batch=4096, buckets=(16,))
    logits = np.asarray(model.apply(params, plain)["logits"])
    real = plain["attention_mask"][:11, :, None] > 0
    np.testing.assert_allclose(head[:11] * real, logits[:11] * real, atol=1e-5)


def test_the_encoder_runs_once_a_row(splits):
    """Rows that pass through the layers are counted, padding included."""
    model, params = build()
    rows, passed = splits(24, 0), []

    def counted(params, carry, batch, **more):
        jax.debug.callback(lambda x: passed.append(x.shape[0]), carry)
        return model.stages[1].apply(params, carry, batch, **more)

    first = model.stages[1]._replace(apply=counted)
    counting = Model(
        model.init, model.apply, (model.stages[0], first, *model.stages[2:])
    )
    fit_head(counting, params, rows, None, CONFIG, **OPTIONS)
    jax.effects_barrier()
    batches = eval_batches(rows, tokens_per_batch=4096, buckets=BUCKETS)
    assert sum(passed) == sum(len(batch["mask"]) for batch in batches)


def test_a_head_may_have_more_columns_than_the_task_has_labels(splits):
    model, params = build(labels=5)
    train, dev = splits(24, 0), splits(16, 1)
    found = fit_head(model, params, train, dev, CONFIG, num_labels=5, **OPTIONS)
    batches = eval_batches(dev, tokens_per_batch=512, buckets=BUCKETS, num_labels=5)
    reader = make_reader(model.apply, "single_label")
    logits = read(reader, found.params, batches, len(dev))["logits"]
    assert logits.shape == (16, 5)
    assert np.all(logits[:, :3].max(axis=1) > logits[:, 3:].max(axis=1))


def test_features_are_no_part_of_what_a_split_is(splits):
    model, params = build()
    rows = splits(9, 0)
    seen = with_features(model, params, rows, buckets=BUCKETS)
    assert "input_ids" not in seen.columns
    assert hash_encoded(rows) != hash_encoded(seen)  # token ids are gone
    taken = seen.take(np.array([4, 2]))
    np.testing.assert_array_equal(taken.features[1], seen.features[2])


def test_more_than_a_head_is_refused(splits):
    model, params = build()
    wrong = FitConfig(epochs=1, dropout=True)
    with pytest.raises(ValueError, match=r"epochs = 1 and head_epochs = 0.*dropout"):
        fit_head(model, params, make_split(8, 0), None, wrong, **OPTIONS)
    bare = Model(model.init, model.apply, ())
    with pytest.raises(ValueError, match="no stages that end with its head"):
        fit_head(bare, params, make_split(8, 0), None, CONFIG, **OPTIONS)
