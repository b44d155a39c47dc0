import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fusion_jax import trees
from fusion_jax.models import HEADS, PARTITION_RULES, EncoderConfig, build_model
from fusion_jax.models.config import FAMILIES

TYPES = {"bert": 2, "roberta": 1, "distilbert": 0}


def config_of(family):
    return EncoderConfig(family, 50, 16, 2, 4, 24, 20, TYPES[family], pad_token_id=1)


def batch_of(seed=0, rows=3, length=6):
    generator = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int32)
    mask[-1, length // 2 :] = 0
    return {
        "input_ids": generator.integers(2, 50, (rows, length), dtype=np.int32),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, (rows, length), dtype=np.int32),
        "choice_ids": generator.integers(-1, 3, (rows, length), dtype=np.int32),
        "choice_mask": np.ones((rows, 3), np.int32),
    }


# multi_label differs from single_label in its loss alone.
PAIRS = [(k, f) for k in HEADS if k != "multi_label" for f in FAMILIES]


@pytest.fixture(params=PAIRS, ids="-".join, scope="module")
def built(request):
    kind, family = request.param
    model = build_model(config_of(family), kind, 4)
    return kind, family, model, model.init(jax.random.key(0))


def test_stages_see_only_what_they_own_and_fold_to_apply(built):
    kind, _, model, params = built
    batch = batch_of()
    whole = model.apply(params, batch)["logits"]
    carry = None
    owned = []
    for stage in model.stages:
        own, _ = trees.partition(params, stage.owns)
        owned += trees.flatten(own)
        carry = stage.apply(own, carry, batch)
    np.testing.assert_array_equal(carry["logits"], whole)
    assert sorted(owned) == sorted(trees.flatten(params))
    width = {"token": (6, 4), "span": (6, 2), "choice": (3,)}.get(kind, (4,))
    assert whole.shape == (3, *width) and whole.dtype == jnp.float32


def test_leaves_have_the_agreed_names_and_the_pooler_stands_where_it_is_read(built):
    kind, family, _, params = built
    names = set(trees.flatten(params))
    assert {
        "encoder/embeddings/word/embedding",
        "encoder/embeddings/position/embedding",
        "encoder/embeddings/norm/scale",
        "encoder/layer_1/attention/query/kernel",
        "encoder/layer_1/attention/output/bias",
        "encoder/layer_0/attention/norm/bias",
        "encoder/layer_0/mlp/up/kernel",
        "encoder/layer_0/mlp/down/kernel",
        "encoder/layer_0/mlp/norm/scale",
    } <= names
    pooled = family == "bert" and kind == "single_label"
    assert ("encoder/pooler/kernel" in names) == pooled
    assert ("encoder/embeddings/token_type/embedding" in names) == (
        family != "distilbert"
    )
    assert not [n for n in names if re.search(r"_\d+/", n.replace("layer_", "layer"))]


def test_partition_rules_cover_every_leaf_with_specs_of_its_rank(built):
    _, _, _, params = built
    leaves = trees.flatten(params)
    for name, spec in trees.match_rules(PARTITION_RULES, leaves).items():
        assert len(spec) <= leaves[name].ndim, name
    kernel = "encoder/layer_0/mlp/up/kernel"
    assert trees.match_rules(PARTITION_RULES, [kernel])[kernel] == P(None, "model")


def test_dropout_only_with_a_key_and_repeatable(built):
    _, _, model, params = built
    batch = batch_of()
    still = model.apply(params, batch)["logits"]
    one, same, other = (
        model.apply(params, batch, dropout_key=jax.random.key(i))["logits"]
        for i in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other) and not np.allclose(one, still)


def test_vmap_over_experts_equals_one_after_another(built):
    _, _, model, _ = built
    experts = [model.init(jax.random.key(i)) for i in range(3)]
    batches = [batch_of(seed) for seed in range(3)]
    with jax.default_matmul_precision("highest"):
        together = jax.jit(jax.vmap(model.apply))(
            trees.stack(experts), jax.tree.map(lambda *x: np.stack(x), *batches)
        )["logits"]
        for k in range(3):
            alone = model.apply(experts[k], batches[k])["logits"]
            np.testing.assert_allclose(together[k], alone, atol=1e-5)


def test_initial_values_are_those_of_hugging_face():
    params = build_model(config_of("bert"), "single_label", 4).init(jax.random.key(0))
    for name, leaf in trees.flatten(params).items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0)
        elif name.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
        else:
            spread = 5 * 0.02 / np.sqrt(2 * leaf.size)
            assert abs(float(leaf.std()) - 0.02) < spread + 1e-4, name
    first, second = (params["encoder"][f"layer_{i}"]["mlp"]["up"] for i in (0, 1))
    assert not np.allclose(first["kernel"], second["kernel"])


def test_bfloat16_computes_near_float32_and_keeps_parameters_and_logits():
    config, batch = config_of("bert"), batch_of()
    exact = build_model(config, "token", 4)
    model = build_model(config, "token", 4, dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0))
    logits = jax.jit(model.apply)(params, batch)["logits"]
    assert logits.dtype == jnp.float32
    expected = jax.jit(exact.apply)(params, batch)["logits"]
    np.testing.assert_allclose(logits, expected, atol=0.02)

    def total(params):
        return model.apply(params, batch)["logits"].sum()

    slopes = jax.eval_shape(jax.grad(total), params)
    assert {x.dtype for x in jax.tree.leaves(slopes)} == {jnp.dtype("float32")}
    carry = jax.eval_shape(model.stages[0].apply, params, None, batch)
    assert carry.dtype == jnp.bfloat16


def test_real_sizes_without_allocating():
    base = EncoderConfig("bert", 30522, 768, 12, 12, 3072, 512)
    shapes = jax.eval_shape(
        build_model(base, "single_label", 2).init, jax.random.key(0)
    )
    # BertForSequenceClassification of bert-base-uncased with two labels.
    assert trees.num_params(shapes) == 109_483_778


def test_unknown_kind_and_no_labels_are_refused():
    with pytest.raises(ValueError, match=r"'ranking' is unknown; known are single_la"):
        build_model(config_of("bert"), "ranking", 2)
    with pytest.raises(ValueError, match="num_labels is 0"):
        build_model(config_of("bert"), "token", 0)
