from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from scipy import special

from fusion_jax import trees
from fusion_jax.models import HEADS, PARTITION_RULES, EncoderConfig, build_model
from fusion_jax.models.config import NO_PADDING_ID
from fusion_jax.models.decoder import Embeddings, last_token, seen_tokens
from fusion_jax.models.names import (
    encoder_entries,
    head_entries,
    kinds_of_architecture,
)

WIDTH, HEADS_USED, LABELS = 16, 4, 3
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 40,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": HEADS_USED,
    "n_inner": 24,
    "n_positions": 12,
}
CONFIG = EncoderConfig.from_hf(GPT2)
KINDS = ("single_label", "multi_label")


def random_like(tree, seed):
    """The tree with every leaf drawn anew, so that no zero bias hides a mistake."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(generator.normal(0.1, 0.4, x.shape), jnp.float32), tree
    )


def batch_of(mask, seed=0):
    mask = np.asarray(mask)
    ids = np.random.default_rng(seed).integers(0, 40, mask.shape)
    return {"input_ids": ids, "attention_mask": mask}


RIGHT = np.array([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
LEFT = RIGHT[:, ::-1]
HOLES = np.array([[1, 0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 0, 1, 1]])


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG, "single_label", LABELS)


@pytest.fixture(scope="module")
def params(model):
    return random_like(model.init(jax.random.key(0)), 1)


def logits_of(model, params, batch):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(model.apply)(params, batch)["logits"])


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def decoder_in_loops(params, batch):
    """Logits in float64: one row, one head and one token at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    own, d = p["encoder"], WIDTH // HEADS_USED
    rows = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        tables = own["embeddings"]
        x = tables["word"]["embedding"][ids]
        x = x + tables["position"]["embedding"][: len(ids)]
        for i in range(CONFIG.num_layers):
            attention, mlp = (own[f"layer_{i}"][n] for n in ("attention", "mlp"))
            packed = linear(norm(x, attention["norm"]), attention["qkv"])
            mixed = np.zeros_like(x)
            for h in range(HEADS_USED):
                q, k, v = (
                    packed[:, n * WIDTH + h * d : n * WIDTH + (h + 1) * d]
                    for n in range(3)
                )
                for t in range(len(ids)):
                    seen = [s for s in range(t + 1) if mask[s]]
                    if seen:
                        weights = special.softmax(k[seen] @ q[t] / np.sqrt(d))
                        mixed[t, h * d : (h + 1) * d] = weights @ v[seen]
            x = x + linear(mixed, attention["output"])
            y = linear(norm(x, mlp["norm"]), mlp["up"])
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
            x = x + linear(y, mlp["down"])
        last = max(np.flatnonzero(mask))
        read = norm(x[last], own["final_norm"])
        rows.append(read @ p["head"]["classifier"]["kernel"])
    return np.stack(rows)


@pytest.mark.parametrize("mask", [RIGHT, LEFT, HOLES], ids=["right", "left", "holes"])
@pytest.mark.parametrize("every_token", [False, True])
def test_logits_equal_a_float64_reference_in_loops(params, mask, every_token):
    model = build_model(CONFIG, "single_label", LABELS, every_token=every_token)
    batch = batch_of(mask)
    expected = decoder_in_loops(params, batch)
    assert expected.std() > 0.1
    np.testing.assert_allclose(
        logits_of(model, params, batch), expected, atol=1e-5, rtol=1e-5
    )


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_later_tokens_do_not_change_an_earlier_last_token(model, params, data):
    mask = np.array(
        data.draw(st.lists(st.integers(0, 1), min_size=7, max_size=7).filter(any))
    )
    batch = batch_of(mask[None])
    last = np.flatnonzero(mask)[-1]
    before = logits_of(model, params, batch)
    changed = np.array(batch["input_ids"])
    changed[0, last + 1 :] = (changed[0, last + 1 :] + 7) % 40
    changed[0, mask == 0] = (changed[0, mask == 0] + 11) % 40
    after = logits_of(model, params, batch | {"input_ids": changed})
    np.testing.assert_array_equal(before, after)
    # The token read does change them: the test would see a difference.
    changed[0, last] = (changed[0, last] + 1) % 40
    other = logits_of(model, params, batch | {"input_ids": changed})
    assert not np.allclose(before, other)


def test_no_token_of_a_layer_sees_a_later_one(params):
    stage = build_model(CONFIG, "single_label", LABELS, every_token=True).stages[1]
    batch = batch_of(np.ones((1, 7), int))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, WIDTH)), jnp.float32)

    def token(x, t):
        return stage.apply(params, x, batch)[0, t].sum()

    slopes = np.stack([jax.grad(token)(x, t)[0] for t in range(7)])
    seen = np.abs(slopes).max(-1) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((7, 7), bool)))


def test_stages_see_only_what_they_own_and_fold_to_apply(model, params):
    batch = batch_of(RIGHT)
    carry: Any = None
    owned = []
    for stage in model.stages:
        own, _ = trees.partition(params, stage.owns)
        owned += trees.flatten(own)
        carry = stage.apply(own, carry, batch)
    np.testing.assert_array_equal(carry["logits"], model.apply(params, batch)["logits"])
    assert sorted(owned) == sorted(trees.flatten(params))
    assert [s.name for s in model.stages] == ["embed", "layer_0", "layer_1", "head"]


def test_last_layer_computes_one_token_unless_every_token_is_asked_for(params):
    batch = batch_of(RIGHT)
    for every_token, tokens in ((False, 1), (True, 7)):
        model = build_model(CONFIG, "single_label", LABELS, every_token=every_token)
        carry: Any = None
        for stage in model.stages[:-1]:
            carry = stage.apply(params, carry, batch)
        assert carry.shape == (3, tokens, WIDTH)


def test_leaves_have_the_agreed_names_and_shapes(params):
    shapes = {name: leaf.shape for name, leaf in trees.flatten(params).items()}
    layer = {
        "attention/norm/scale": (16,),
        "attention/norm/bias": (16,),
        "attention/qkv/kernel": (16, 48),
        "attention/qkv/bias": (48,),
        "attention/output/kernel": (16, 16),
        "attention/output/bias": (16,),
        "mlp/norm/scale": (16,),
        "mlp/norm/bias": (16,),
        "mlp/up/kernel": (16, 24),
        "mlp/up/bias": (24,),
        "mlp/down/kernel": (24, 16),
        "mlp/down/bias": (16,),
    }
    expected = {f"encoder/layer_{i}/{n}": s for i in (0, 1) for n, s in layer.items()}
    assert shapes == expected | {
        "encoder/embeddings/word/embedding": (40, 16),
        "encoder/embeddings/position/embedding": (12, 16),
        "encoder/final_norm/scale": (16,),
        "encoder/final_norm/bias": (16,),
        "head/classifier/kernel": (16, 3),
    }


def test_every_leaf_has_one_name_in_files_and_every_name_one_leaf(params):
    entries = encoder_entries(CONFIG, prefixed=True)
    entries += head_entries(CONFIG, "single_label")
    assert sorted(e.leaf for e in entries) == sorted(trees.flatten(params))
    by_leaf = {e.leaf: (e.source, e.transform) for e in entries}
    assert by_leaf["encoder/layer_1/attention/qkv/kernel"] == (
        "transformer.h.1.attn.c_attn.weight",
        "identity",
    )
    assert by_leaf["head/classifier/kernel"] == ("score.weight", "transpose")
    assert kinds_of_architecture("gpt2", "GPT2ForSequenceClassification") == KINDS
    assert kinds_of_architecture("gpt2", "GPT2Model") == ()
    assert kinds_of_architecture("gpt2", "GPT2LMHeadModel") == ()


def test_partition_rules_split_the_packed_columns(params):
    leaves = trees.flatten(params)
    specs = trees.match_rules(PARTITION_RULES, leaves)
    assert all(len(spec) <= leaves[name].ndim for name, spec in specs.items())
    assert specs["encoder/layer_0/attention/qkv/kernel"] == P(None, "model")
    assert specs["encoder/layer_0/attention/qkv/bias"] == P("model")
    assert specs["encoder/layer_0/mlp/down/kernel"] == P("model", None)


def test_dropout_only_with_a_key_repeatable_and_at_its_own_rates(params):
    batch = batch_of(RIGHT)

    def apply(key=None, **rates):
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | rates
        model = build_model(EncoderConfig.from_hf(GPT2 | rates), "single_label", LABELS)
        key = None if key is None else jax.random.key(key)
        return np.asarray(model.apply(params, batch, dropout_key=key)["logits"])

    still = apply()
    np.testing.assert_array_equal(apply(1), still)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        np.testing.assert_array_equal(apply(**{name: 0.3}), still)
        one, same, other = (apply(i, **{name: 0.3}) for i in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other) and not np.allclose(one, still)


def test_mean_over_attention_dropout_is_near_the_output_without(params):
    stage = build_model(CONFIG, "single_label", LABELS, every_token=True).stages[1]
    config = EncoderConfig.from_hf(GPT2 | {"resid_pdrop": 0.0})
    noisy = build_model(config, "single_label", LABELS, every_token=True).stages[1]
    small = jax.tree.map(lambda x: x * 0.1, params)
    batch = batch_of(np.ones((1, 7), int))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, WIDTH)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4096)
    draws = jax.jit(
        jax.vmap(lambda key: noisy.apply(small, x, batch, dropout_key=key))
    )(keys)
    error = draws.std(0) / np.sqrt(len(keys))
    difference = np.abs(draws.mean(0) - stage.apply(small, x, batch))
    assert float(error.max()) > 0
    assert float((difference - 6 * error).max()) < 1e-5


def test_a_row_without_tokens_is_finite_with_finite_gradients(model, params):
    batch = batch_of(np.array([[0] * 5, [1] * 5]))

    def total(params):
        return model.apply(params, batch)["logits"].sum()

    value, slopes = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_huge_scores_neither_overflow_nor_lose_the_peak(model, params):
    qkv = params["encoder"]["layer_0"]["attention"]["qkv"]
    factor = jnp.where(jnp.arange(3 * WIDTH) < WIDTH, 1e4, 1.0)
    leaves = trees.flatten(params)
    leaves["encoder/layer_0/attention/qkv/kernel"] = qkv["kernel"] * factor
    huge, batch = trees.unflatten(leaves), batch_of(LEFT)
    expected = decoder_in_loops(huge, batch)
    np.testing.assert_allclose(
        logits_of(model, huge, batch), expected, atol=1e-4, rtol=1e-4
    )


def test_bfloat16_computes_near_float32_and_keeps_parameters_and_logits():
    exact = build_model(CONFIG, "single_label", LABELS)
    model = build_model(CONFIG, "single_label", LABELS, dtype=jnp.bfloat16)
    params, batch = model.init(jax.random.key(0)), batch_of(RIGHT)
    logits = model.apply(params, batch)["logits"]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact.apply(params, batch)["logits"], atol=0.02)
    carry = jax.eval_shape(model.stages[0].apply, params, None, batch)
    assert carry.dtype == jnp.bfloat16
    carry = jax.eval_shape(model.stages[1].apply, params, carry, batch)
    assert carry.dtype == jnp.bfloat16


def test_vmap_over_experts_equals_one_after_another(model):
    experts = [random_like(model.init(jax.random.key(0)), i) for i in range(3)]
    batches = [batch_of(RIGHT, seed) for seed in range(3)]
    with jax.default_matmul_precision("highest"):
        together = jax.vmap(model.apply)(
            trees.stack(experts), jax.tree.map(lambda *x: np.stack(x), *batches)
        )["logits"]
    for k in range(3):
        alone = logits_of(model, experts[k], batches[k])
        np.testing.assert_allclose(together[k], alone, atol=1e-5)


def test_initial_values_are_those_of_hugging_face():
    config = EncoderConfig.from_hf(GPT2 | {"n_embd": 64, "n_inner": None, "n_layer": 8})
    params = build_model(config, "single_label", LABELS).init(jax.random.key(0))
    for name, leaf in trees.flatten(params).items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0)
        elif name.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
        else:
            residual = name.endswith(("attention/output/kernel", "mlp/down/kernel"))
            expected = 0.02 / (4 if residual else 1)
            spread = 5 * expected / np.sqrt(2 * leaf.size)
            assert abs(float(leaf.std()) - expected) < spread, name


def test_real_sizes_without_allocating():
    config = EncoderConfig.from_hf(
        {
            "model_type": "gpt2",
            "vocab_size": 50257,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
        }
    )
    init = build_model(config, "single_label", 2).init
    shapes = jax.eval_shape(init, jax.random.key(0))
    # GPT-2 small has 124,439,808 parameters; score adds 2 * 768.
    assert trees.num_params(shapes) == 124_439_808 + 2 * 768


def test_rows_longer_than_the_position_table_are_refused():
    module = Embeddings(CONFIG)
    module.init(jax.random.key(0), {"input_ids": np.ones((1, 12), int)})
    with pytest.raises(ValueError, match=r"positions for 12: .*max_length"):
        module.init(jax.random.key(0), {"input_ids": np.ones((1, 13), int)})


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind not in KINDS])
def test_kinds_without_a_head_are_refused_with_those_there_are(kind):
    with pytest.raises(ValueError) as caught:
        build_model(CONFIG, kind, LABELS)
    assert f"gpt2 has no head of kind {kind!r}" in str(caught.value)
    assert "its kinds are single_label, multi_label" in str(caught.value)


@given(st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1))
def test_seen_tokens_and_last_token_follow_their_definitions(rows):
    mask = jnp.asarray(rows)
    lasts = [max([t for t in range(5) if row[t]], default=0) for row in rows]
    expected = [
        [[bool(row[s]) and s <= t for s in range(5)] for t in range(5)] for row in rows
    ]
    np.testing.assert_array_equal(seen_tokens(mask), expected)
    one = [[grid[t]] for grid, t in zip(expected, lasts, strict=True)]
    np.testing.assert_array_equal(seen_tokens(mask, last_only=True), one)
    x = np.arange(mask.size * 2).reshape(len(rows), 5, 2)
    read = [[row[t]] for row, t in zip(x, lasts, strict=True)]
    np.testing.assert_array_equal(last_token(jnp.asarray(x), mask), read)


def test_config_reads_defaults_nulls_and_writes_them_back():
    least = {key: GPT2[key] for key in GPT2 if key != "n_inner"}
    config = EncoderConfig.from_hf(least)
    assert config.intermediate_size == 4 * WIDTH
    assert (config.activation, config.layer_norm_eps) == ("gelu_new", 1e-5)
    assert (config.pad_token_id, config.type_vocab_size) == (NO_PADDING_ID, 0)
    rates = (config.hidden_dropout, config.attention_dropout, config.input_dropout)
    assert rates == (0.1, 0.1, 0.1)
    assert config.to_hf()["pad_token_id"] is None
    given_all = GPT2 | {
        "layer_norm_epsilon": 1e-6,
        "activation_function": "gelu",
        "resid_pdrop": 0.2,
        "attn_pdrop": 0.3,
        "embd_pdrop": 0.4,
        "pad_token_id": 39,
    }
    for values in (least, least | {"n_inner": None, "pad_token_id": None}, given_all):
        config = EncoderConfig.from_hf(values)
        assert EncoderConfig.from_hf(config.to_hf()) == config
    assert given_all.items() <= config.to_hf().items()
    # A rate that was left out is written as the number that it means.
    bare = EncoderConfig("gpt2", 40, 16, 2, 4, 24, 12, 0, hidden_dropout=0.25)
    assert bare.to_hf()["embd_pdrop"] == 0.25


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("scale_attn_by_inverse_layer_idx", True, "False"),
        ("reorder_and_upcast_attn", True, "False"),
        ("scale_attn_weights", False, "True"),
        ("add_cross_attention", True, "False"),
    ],
)
def test_values_that_change_the_computation_are_refused(key, value, right):
    with pytest.raises(ValueError, match=rf"{key}.* only {right} is supported"):
        EncoderConfig.from_hf(GPT2 | {key: value})
    EncoderConfig.from_hf(GPT2 | {key: not value})


def test_missing_sizes_are_all_named():
    with pytest.raises(ValueError) as caught:
        EncoderConfig.from_hf({"model_type": "gpt2", "activation_function": "mish"})
    for key in ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"):
        assert f"{key!r} is missing" in str(caught.value)
    assert "n_inner" not in str(caught.value)
    assert "mish" in str(caught.value)
