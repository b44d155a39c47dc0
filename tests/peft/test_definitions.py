"""The mathematics of each kind against plain float64 numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft import (
    KINDS,
    PeftConfig,
    attach,
    flat_prefix,
    init_module,
    merge_into,
    portable,
    residual_host,
    with_module,
)
from fusion_jax.peft.compacter import kernel_of
from fusion_jax.peft.delta import scaling
from tests.peft.hosts import batch_of, host_of, logits, model_of, moved

IN, OUT, TOKENS = 6, 4, 5
PATH = "encoder/layer_0/attention/query"
DOWN = "encoder/layer_0/mlp/down"
NORM = "encoder/layer_0/mlp/norm"


def draw(*shape, seed=0):
    generator = np.random.default_rng([seed, *shape])
    return generator.normal(0, 1, shape).astype(np.float32)


def through(config, leaves, call, x, path=PATH, host=()):
    """The hook of a config called for one layer."""
    params = trees.unflatten({**dict(host), **leaves})
    hook = KINDS[config.kind].around(config, params)
    with jax.default_matmul_precision("highest"):
        return np.asarray(hook(path, call, jnp.asarray(x)))


def linear():
    kernel, bias = draw(IN, OUT), draw(OUT)
    host = {f"{PATH}/kernel": kernel, f"{PATH}/bias": bias}
    return lambda x: x @ kernel + bias, host, kernel.astype(float), bias.astype(float)


@pytest.mark.parametrize("root", [False, True])
def test_lora_is_s_x_a_b_beside_the_layer(root):
    call, _, kernel, bias = linear()
    a, b, x = draw(IN, 2), draw(2, OUT), draw(3, TOKENS, IN)
    config = PeftConfig(rank=2, alpha=6, use_rslora=root)
    ours = through(config, {f"{PATH}/lora/a": a, f"{PATH}/lora/b": b}, call, x)
    s = 6 / math.sqrt(2) if root else 3
    rows, low, high = (np.asarray(m, float) for m in (x, a, b))
    expected = rows @ kernel + bias + s * rows @ low @ high
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_lora_on_a_table_adds_rows():
    table, ids = draw(7, OUT), np.array([[0, 3], [6, 6]])
    a, b = draw(7, 2), draw(2, OUT)
    config, path = PeftConfig(rank=2, alpha=4), "encoder/embeddings/word"
    leaves = {f"{path}/lora/a": a, f"{path}/lora/b": b}
    ours = through(config, leaves, lambda ids: jnp.take(table, ids, 0), ids, path)
    expected = (table.astype(float) + 2 * a.astype(float) @ b)[ids]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_dora_scales_the_product_and_not_the_bias():
    call, host, kernel, bias = linear()
    a, b, m = draw(IN, 2), draw(2, OUT), np.abs(draw(OUT)) + 0.5
    x = draw(3, TOKENS, IN)
    leaves = {f"{PATH}/lora/{n}": v for n, v in zip(("a", "b"), (a, b), strict=True)}
    leaves[f"{PATH}/lora/magnitude"] = m
    config = PeftConfig(rank=2, alpha=2, use_dora=True)
    ours = through(config, leaves, call, x, host=host)
    whole = kernel + a.astype(float) @ b
    whole = m * whole / np.sqrt((whole**2).sum(0))
    np.testing.assert_allclose(ours, x.astype(float) @ whole + bias, rtol=2e-5)


def test_the_norm_of_dora_is_a_constant_of_the_gradient():
    call, host, kernel, _ = linear()
    a, b, x = draw(IN, 2), draw(2, OUT), draw(1, IN)
    leaves = {f"{PATH}/lora/a": a, f"{PATH}/lora/magnitude": np.ones(OUT, np.float32)}
    config = PeftConfig(rank=2, alpha=2, use_dora=True)

    def said(b):
        params = trees.unflatten({**host, **leaves, f"{PATH}/lora/b": b})
        return KINDS["lora"].around(config, params)(PATH, call, jnp.asarray(x)).sum()

    norm = np.sqrt(((kernel + a.astype(float) @ b) ** 2).sum(0))
    expected = (x.astype(float) @ a).T / norm
    np.testing.assert_allclose(jax.grad(said)(b), expected, rtol=1e-5)


def bottleneck():
    own = {
        "down/kernel": draw(OUT, 2),
        "down/bias": draw(2),
        "up/kernel": draw(2, OUT),
        "up/bias": draw(OUT),
    }
    leaves = {name: x.astype(float) for name, x in own.items()}

    def add(h, activation):
        inner = activation(h @ leaves["down/kernel"] + leaves["down/bias"])
        return inner @ leaves["up/kernel"] + leaves["up/bias"]

    return own, add


def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_houlsby_adds_the_bottleneck_to_the_output():
    own, add = bottleneck()
    h = draw(3, TOKENS, OUT)
    leaves = {f"{DOWN}/adapter/{name}": x for name, x in own.items()}
    config = PeftConfig(kind="adapter", scale=0.5)
    ours = through(config, leaves, lambda x: x, h, DOWN)
    expected = h + 0.5 * add(h.astype(float), erf_gelu)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_pfeiffer_reads_what_is_normed_and_adds_before_the_norm():
    own, add = bottleneck()
    h = draw(3, TOKENS, OUT)
    leaves = {f"{NORM}/adapter/{name}": x for name, x in own.items()}

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    config = PeftConfig(kind="adapter", place="pfeiffer")
    ours = through(config, leaves, norm, h, NORM)
    exact = h.astype(float)
    expected = norm(exact + add(norm(exact), lambda x: np.maximum(x, 0)))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_parallel_reads_the_input_of_the_feed_forward_times_four():
    own, add = bottleneck()
    x = draw(3, TOKENS, OUT)
    leaves = {f"{DOWN}/adapter/{name}": leaf for name, leaf in own.items()}
    config = PeftConfig(kind="adapter", place="parallel")
    hook = KINDS["adapter"].around(config, trees.unflatten(leaves))
    inner = hook("encoder/layer_0/mlp/up", lambda x: 3 * x, jnp.asarray(x))
    ours = hook(DOWN, lambda x: x, inner)
    expected = 3 * x + 4 * add(x.astype(float), lambda x: np.maximum(x, 0))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_compacter_kernel_is_a_sum_of_kronecker_products():
    n, rank = 3, 2
    rule, left, right = draw(n, n, n), draw(n, 4, rank), draw(n, rank, 2)
    ours = kernel_of({"left": left, "right": right}, rule)
    expected = sum(
        np.kron(rule[i].astype(float), left[i].astype(float) @ right[i])
        for i in range(n)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask_last", [False, True])
def test_a_prefix_is_keys_and_values_that_every_query_sees(mask_last):
    host = host_of()
    config = PeftConfig(kind="prefix", length=2)
    module = moved(init_module(config, host, jax.random.key(0)))
    params = trees.flatten(with_module(host, module.params))
    path = "encoder/layer_0/attention"
    x, batch = draw(1, TOKENS, 16), {"attention_mask": np.ones((1, TOKENS), int)}
    if mask_last:
        batch["attention_mask"][0, -1] = 0
    stage = model_of().stages[1]
    seen = {}

    def tap(name, inputs, y):
        seen[name] = inputs

    around = KINDS["prefix"].around(config, module.params)
    with jax.default_matmul_precision("highest"):
        stage.apply(host, jnp.asarray(x), batch, tap=tap, around=around)

    def project(name):
        kernel, bias = (params[f"{path}/{name}/{n}"] for n in ("kernel", "bias"))
        return x[0].astype(float) @ kernel + bias

    query, key, value = (project(n) for n in ("query", "key", "value"))
    key = np.concatenate([params[f"{path}/key/prefix/rows"], key])
    value = np.concatenate([params[f"{path}/value/prefix/rows"], value])
    visible = np.concatenate([[1, 1], batch["attention_mask"][0]]).astype(bool)
    mixed = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        scores = query[:, part] @ key[:, part].T / math.sqrt(8)
        weights = np.exp(scores - scores.max(-1, keepdims=True)) * visible
        weights /= weights.sum(-1, keepdims=True)
        mixed.append(weights @ value[:, part])
    expected = np.concatenate(mixed, -1)
    ours = np.asarray(seen[f"{path}/output/kernel"])[0]
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)


def test_a_flat_prefix_is_what_its_network_gives():
    config = PeftConfig(kind="prefix", length=3, mlp_width=5)
    module = moved(init_module(config, host_of(), jax.random.key(0)))
    flat = flat_prefix(module)
    assert flat.config.mlp_width == 0
    assert len(trees.flatten(flat.params)) == 4
    own = {n: np.asarray(x, float) for n, x in trees.flatten(module.params).items()}
    middle = np.tanh(
        own["prefix/encoder/embedding"] @ own["prefix/encoder/hidden/kernel"]
        + own["prefix/encoder/hidden/bias"]
    )
    rows = middle @ own["prefix/encoder/output/kernel"][1, 0]
    rows = rows + own["prefix/encoder/output/bias"][1, 0]
    kept = trees.flatten(flat.params)
    np.testing.assert_allclose(
        kept["encoder/layer_1/attention/key/prefix/rows"], rows, rtol=1e-5, atol=1e-5
    )
    assert flat_prefix(flat).params == flat.params


def test_a_prompt_stands_before_the_text_as_words_would():
    """Rows of the word table as a prompt are the same as their words in the text."""
    config, ids, batch = PeftConfig(kind="prompt", length=3), [7, 11, 30], batch_of()
    front = ((0, 0), (3, 0))
    words = np.tile(np.array(ids, np.int32), (len(batch["input_ids"]), 1))
    longer = {
        "input_ids": np.concatenate([words, batch["input_ids"]], axis=1),
        "attention_mask": np.pad(batch["attention_mask"], front, constant_values=1),
        "token_type_ids": np.pad(batch["token_type_ids"], front),
    }
    # What is said of every token is said of the text's alone.
    for kind, said in (("single_label", slice(None)), ("token", np.s_[:, 3:])):
        model, host = model_of(kind=kind), host_of(kind=kind)
        rows = host["encoder"]["embeddings"]["word"]["embedding"][np.array(ids)]
        params = trees.unflatten({"encoder/embeddings/word/prompt/rows": rows})
        ours = logits(attach(model, config), with_module(host, params), batch)
        expected = logits(model, host, longer)[said]
        np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=1e-6)


def test_pissa_takes_the_largest_singular_values_out_of_the_host():
    host = host_of()
    config = PeftConfig(rank=3, alpha=1.5, init="pissa")
    start = init_module(config, host, jax.random.key(0))
    rest = residual_host(host, start)
    before, after = (trees.flatten(x)[f"{PATH}/kernel"] for x in (host, rest))
    values = np.linalg.svd(np.asarray(before, float), compute_uv=False)
    left = np.linalg.svd(np.asarray(after, float), compute_uv=False)
    np.testing.assert_allclose(left[: len(values) - 3], values[3:], rtol=1e-4)
    merged = merge_into(rest, start)
    for name, leaf in trees.flatten(host).items():
        np.testing.assert_allclose(trees.flatten(merged)[name], leaf, atol=1e-5)


@pytest.mark.parametrize("root", [False, True])
def test_trained_pissa_is_plain_lora_of_twice_the_rank_on_the_original_host(root):
    host = host_of()
    config = PeftConfig(rank=2, alpha=3, init="pissa", use_rslora=root)
    start = init_module(config, host, jax.random.key(0))
    trained = moved(start)
    ours = portable(trained, start)
    assert ours.config.rank == 4 and ours.config.init == "default"
    assert scaling(ours.config, PATH) == pytest.approx(scaling(config, PATH))
    expected = trees.flatten(merge_into(residual_host(host, start), trained))
    for name, leaf in trees.flatten(merge_into(host, ours)).items():
        np.testing.assert_allclose(leaf, expected[name], atol=1e-5, err_msg=name)


def test_dropout_reaches_the_input_of_the_low_rank_product_alone():
    a, b = np.eye(IN, dtype=np.float32), np.eye(IN, dtype=np.float32)
    leaves = trees.unflatten({f"{PATH}/lora/a": a, f"{PATH}/lora/b": b})
    config = PeftConfig(rank=IN, alpha=IN, dropout=0.25)
    x = jnp.ones((50, IN))
    hook = KINDS["lora"].around(config, leaves, jax.random.key(0))
    added = np.asarray(hook(PATH, lambda x: 2 * x, x)) - 2
    assert set(np.unique(added.round(5))) == {0.0, np.float32(4 / 3).round(5)}
    assert 0.1 < (added == 0).mean() < 0.4
    other = hook("encoder/layer_1/attention/query", lambda x: 2 * x, x)
    np.testing.assert_array_equal(other, 2 * x)
    quiet = KINDS["lora"].around(config, leaves)
    np.testing.assert_allclose(quiet(PATH, lambda x: 2 * x, x), 3 * x)
