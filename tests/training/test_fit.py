"""fit and fit_stack from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fusion_jax.data.batches import TrainBatches
from fusion_jax.models.build import build_model
from fusion_jax.models.config import EncoderConfig
from fusion_jax.training.config import FROZEN_EMBEDDINGS, FitConfig
from fusion_jax.training.evaluate import DevScore
from fusion_jax.training.fit import fit, fit_stack
from fusion_jax.training.loop import Diverged
from fusion_jax.training.sharding import make_mesh
from fusion_jax.trees import flatten, partition, stack, unstack

CONFIG = FitConfig(epochs=3, batch_size=8, learning_rate=0.05, buckets=(8, 16))
OPTIONS = {"kind": "single_label", "progress": False}
RULES = (
    (r".*/up/kernel", PartitionSpec(None, "model")),
    (r".*/classifier/kernel", PartitionSpec("model", None)),
    (r".*", PartitionSpec()),
)

needs_8_devices = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs 8 devices; set JAX_NUM_CPU_DEVICES=8"
)


def configured(**changes):
    return FitConfig(**(CONFIG.to_json() | changes))


def test_it_learns_and_leaves_its_arguments_alone(model, params, splits):
    before = jax.tree.map(np.array, params)
    result = fit(model, params, splits(80, 1), splits(40, 2), CONFIG, **OPTIONS)
    first, *_, last = result.history
    assert last["train_loss"] < 0.8 * first["train_loss"]
    assert result.history[result.best_epoch]["dev"] > 0.6
    jax.tree.map(np.testing.assert_array_equal, before, params)
    assert list(flatten(result.params)) == list(flatten(params))
    table = "encoder/embeddings/word/embedding"
    np.testing.assert_array_equal(flatten(result.params)[table], flatten(params)[table])
    assert not np.array_equal(
        flatten(result.params)["head/classifier/kernel"],
        flatten(params)["head/classifier/kernel"],
    )


def test_the_result_is_the_epoch_that_was_selected(
    model, params, splits, largest_difference
):
    # At a constant rate fewer epochs are the beginning of more.
    options = {"schedule": "constant", "warmup_fraction": 0.0, "learning_rate": 0.3}
    dev = splits(40, 2)
    config = configured(epochs=6, select="loss", **options)
    result = fit(model, params, splits(40, 1), dev, config, **OPTIONS)
    losses = [record["dev_loss"] for record in result.history]
    assert result.best_epoch == int(np.argmin(losses)) < 5
    config = configured(epochs=result.best_epoch + 1, select="last", **options)
    short = fit(model, params, splits(40, 1), dev, config, **OPTIONS)
    assert largest_difference(result.params, short.params) == 0


@pytest.mark.parametrize("shared_dev", [True, False])
@pytest.mark.parametrize("together", [1, 3])
def test_each_expert_of_a_stack_is_what_it_is_alone(
    model, params, splits, together, shared_dev, largest_difference
):
    config = configured(
        dropout=True, head_epochs=1, patience=1, average="swa", epochs=4
    )
    shared, trained = partition(params, FROZEN_EMBEDDINGS)
    starts = [jax.tree.map(lambda x, k=k: x * (1 + 0.1 * k), trained) for k in range(3)]
    trains = [splits(rows, seed) for seed, rows in enumerate((30, 12, 30))]
    devs = [splits(20, 9)] * 3 if shared_dev else [splits(20, 9 + k) for k in range(3)]
    names = ("a", "b", "c")
    result = fit_stack(
        model, stack(starts), shared, trains, devs, config, names=names,
        together=together, **OPTIONS,
    )  # fmt: skip
    for k, tree in enumerate(unstack(result.params)):
        start = dict(starts[k])
        alone = fit(
            model,
            {
                "encoder": start["encoder"] | shared["encoder"],
                "head": start["head"],
            },
            trains[k],
            devs[k],
            config,
            name=names[k],
            **OPTIONS,
        )
        assert alone.best_epoch == result.best_epoch[k]
        own = partition(alone.params, FROZEN_EMBEDDINGS)[1]
        assert largest_difference(tree, own) < 1e-5
        records = [r for r in result.history if r["expert"] == names[k]]
        assert [r["tokens"] for r in records] == [r["tokens"] for r in alone.history]
        np.testing.assert_allclose(
            [r["dev_loss"] for r in records],
            [r["dev_loss"] for r in alone.history],
            rtol=1e-4,
        )


def test_one_set_of_batches_serves_all_experts(
    model, params, splits, largest_difference
):
    shared, trained = partition(params, FROZEN_EMBEDDINGS)
    train = TrainBatches(splits(20, 1), 8, seed=0, buckets=(16,))
    together, apart = (
        fit_stack(
            model, stack([trained] * 2), shared, trains, splits(12, 2), CONFIG,
            together=2, **OPTIONS,
        )
        for trains in (train, [train, TrainBatches(splits(20, 1), 8, seed=0,
                                                   buckets=(16,))])
    )  # fmt: skip
    assert largest_difference(together.params, apart.params) < 1e-6


def test_patience_stops_an_expert(model, params, splits):
    config = configured(epochs=20, patience=2, learning_rate=0.5, schedule="constant")
    result = fit(model, params, splits(24, 1), splits(24, 2), config, **OPTIONS)
    assert len(result.history) < 20
    assert len(result.history) == result.best_epoch + 3


def test_the_head_phase_trains_the_head_alone(model, params, splits):
    config = configured(epochs=0, head_epochs=3, frozen=(), head_learning_rate=0.1)
    result = fit(model, params, splits(80, 1), splits(40, 2), config, **OPTIONS)
    for name, leaf in flatten(result.params).items():
        same = np.array_equal(leaf, flatten(params)[name])
        assert same != name.startswith("head/")
    assert {record["phase"] for record in result.history} == {"head"}
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_both_phases_run_and_only_the_second_is_selected_from(model, params, splits):
    config = configured(head_epochs=2, epochs=2)
    result = fit(model, params, splits(24, 1), splits(24, 2), config, **OPTIONS)
    assert [r["phase"] for r in result.history] == ["head"] * 2 + ["full"] * 2
    assert [r["kept"] for r in result.history[:2]] == [False, False]
    assert result.best_epoch in (2, 3)


def test_without_a_dev_set_the_last_epoch_is_taken(model, params, splits):
    result = fit(model, params, splits(24, 1), None, CONFIG, **OPTIONS)
    assert result.best_epoch == 2
    assert result.history[0]["dev"] is None


def test_a_function_may_score_the_epochs(model, params, splits, largest_difference):
    seen = []

    def judge(whole):
        seen.append(jax.tree.map(np.array, whole))
        value = (0.2, 0.7, 0.4)[len(seen) - 1]
        return DevScore({"own": value}, value, 1 - value)

    result = fit(model, params, splits(24, 1), judge, CONFIG, **OPTIONS)
    assert set(flatten(seen[1])) == set(flatten(params))
    assert result.best_epoch == 1
    assert [record["dev"] for record in result.history] == [0.2, 0.7, 0.4]
    assert largest_difference(result.params, seen[1]) == 0
    assert largest_difference(seen[0], seen[1]) > 0


def test_a_loss_that_is_not_finite_names_expert_and_step(model, params, splits):
    shared, trained = partition(params, FROZEN_EMBEDDINGS)
    broken = jax.tree.map(lambda x: x * jnp.inf, trained)
    with pytest.raises(Diverged, match="expert 'bad' at step 0 of 'tuning'") as caught:
        fit_stack(
            model, stack([trained, broken]), shared, splits(24, 1), None, CONFIG,
            names=("good", "bad"), name="tuning", together=2, **OPTIONS,
        )  # fmt: skip
    assert "good" not in str(caught.value)
    assert "learning_rate" in str(caught.value)


def test_nothing_to_train_is_an_error(model, params, splits):
    with pytest.raises(ValueError, match=r"nothing to train, FitConfig\.frozen"):
        fit(model, params, splits(24, 1), None, configured(frozen=[".*"]), **OPTIONS)
    headless = configured(frozen=["head/.*"], head_epochs=1)
    with pytest.raises(ValueError, match=r"in phase 'head'.*encoder/"):
        fit(model, params, splits(24, 1), None, headless, **OPTIONS)


def test_arguments_that_do_not_fit_together_are_named(model, params, splits):
    two = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    with pytest.raises(ValueError, match="scores one expert, and there are 2"):
        fit_stack(model, two, {}, splits(20, 1), print, CONFIG, **OPTIONS)
    shared, trained = partition(params, FROZEN_EMBEDDINGS)
    both = stack([trained, trained])
    with pytest.raises(ValueError, match="trains: 3 for 2 experts"):
        fit_stack(model, both, shared, [splits(9, 1)] * 3, None, CONFIG, **OPTIONS)
    with pytest.raises(ValueError, match="different names"):
        fit_stack(
            model, both, shared, splits(9, 1), None, CONFIG, names=("a", "a"), **OPTIONS
        )


def test_half_precision_weights_are_trained_in_float32(model, params, splits):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    result = fit(model, half, splits(24, 1), None, CONFIG, **OPTIONS)
    leaf = flatten(result.params)["head/classifier/kernel"]
    assert leaf.dtype == jnp.float32


TINY = EncoderConfig(
    family="bert", vocab_size=24, hidden_size=16, num_layers=2, num_heads=2,
    intermediate_size=32, max_positions=32, type_vocab_size=2, layer_norm_eps=1e-12,
    activation="gelu", pad_token_id=0, hidden_dropout=0.1, attention_dropout=0.1,
    classifier_dropout=None,
)  # fmt: skip


def test_bfloat16_computes_so_and_keeps_float32_parameters(splits):
    model = build_model(TINY, "single_label", 3, dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0))
    config = configured(dtype="bfloat16", learning_rate=5e-3, epochs=4)
    result = fit(model, params, splits(64, 1), splits(32, 2), config, **OPTIONS)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {
        np.dtype(np.float32)
    }
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    with pytest.raises(ValueError, match="the model computes in bfloat16"):
        fit(model, params, splits(64, 1), None, CONFIG, **OPTIONS)


@needs_8_devices
@pytest.mark.parametrize(
    "axes", [{"data": 4}, {"model": 2}, {"expert": 2}, {"expert": 2, "data": 2,
                                                        "model": 2}]
)  # fmt: skip
def test_a_mesh_does_not_change_the_result(
    model, params, splits, axes, largest_difference
):
    shared, trained = partition(params, FROZEN_EMBEDDINGS)
    arguments = (model, stack([trained] * 2), shared,
                 [splits(24, 1), splits(24, 2)], splits(16, 3), CONFIG)  # fmt: skip
    alone = fit_stack(*arguments, together=2, **OPTIONS)
    spread = fit_stack(
        *arguments, mesh=make_mesh(**axes), rules=RULES, together=2, **OPTIONS
    )
    assert largest_difference(alone.params, spread.params) < 1e-5
    kernel = flatten(spread.params)["encoder/layer_0/mlp/up/kernel"]
    spec = PartitionSpec("expert", None, "model")
    expected = NamedSharding(make_mesh(**axes), spec)
    assert kernel.sharding.is_equivalent_to(expected, 3)


@needs_8_devices
def test_experts_that_cannot_be_spread_evenly_are_refused(model, params, splits):
    shared, trained = partition(params, FROZEN_EMBEDDINGS)
    with pytest.raises(ValueError, match="3 experts cannot be spread evenly"):
        fit_stack(
            model, stack([trained] * 3), shared, splits(9, 1), None, CONFIG,
            mesh=make_mesh(expert=2), **OPTIONS,
        )  # fmt: skip
