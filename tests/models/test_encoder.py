import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.encoder import Embeddings, Layer, Pooler

CONFIG = EncoderConfig("bert", 40, 16, 1, 4, 24, 12)


def random_like(tree, seed):
    """The tree with every leaf drawn anew, so that no zero bias hides a mistake."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(generator.normal(0.3, 0.5, x.shape), jnp.float32), tree
    )


def as64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def norm(x, p, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return scaled * p["scale"] + p["bias"]


def layer_in_loops(x, mask, p, config):
    """One transformer layer in float64, one row and one head at a time."""
    width = config.hidden_size // config.num_heads
    attention, mlp = p["attention"], p["mlp"]
    rows = []
    for row, seen in zip(x, mask, strict=True):
        q, k, v = (
            row @ attention[n]["kernel"] + attention[n]["bias"]
            for n in ("query", "key", "value")
        )
        heads = []
        for h in range(config.num_heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[:, part] @ k[:, part].T / np.sqrt(width)
            scores = np.where(seen[None] > 0, scores, -np.inf)
            heads.append(special.softmax(scores, axis=-1) @ v[:, part])
        mixed = np.concatenate(heads, -1)
        y = mixed @ attention["output"]["kernel"] + attention["output"]["bias"]
        y = norm(row + y, attention["norm"], config.layer_norm_eps)
        z = y @ mlp["up"]["kernel"] + mlp["up"]["bias"]
        z = z * special.ndtr(z)
        z = z @ mlp["down"]["kernel"] + mlp["down"]["bias"]
        rows.append(norm(y + z, mlp["norm"], config.layer_norm_eps))
    return np.stack(rows)


@pytest.fixture
def layer():
    x = np.random.default_rng(0).normal(size=(3, 7, 16)).astype(np.float32)
    mask = np.ones((3, 7), np.int32)
    mask[1, 4:] = 0
    mask[2, 1:] = 0
    module = Layer(CONFIG)
    batch = {"attention_mask": mask}
    params = random_like(module.init(jax.random.key(0), x, batch)["params"], 1)
    return module, params, x, batch


def test_layer_equals_a_float64_reference_in_loops(layer):
    module, params, x, batch = layer
    with jax.default_matmul_precision("highest"):
        y = module.apply({"params": params}, x, batch)
    expected = layer_in_loops(x, batch["attention_mask"], as64(params), CONFIG)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_masked_tokens_change_nothing_elsewhere(layer):
    module, params, x, batch = layer
    before = module.apply({"params": params}, x, batch)
    changed = np.array(x)
    changed[1, 4:] += 100.0
    after = module.apply({"params": params}, changed, batch)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])


def test_a_row_without_tokens_is_finite_with_finite_gradients(layer):
    module, params, x, _ = layer
    batch = {"attention_mask": np.zeros((3, 7), np.int32)}

    def total(params):
        return module.apply({"params": params}, x, batch).sum()

    value, slopes = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_huge_scores_neither_overflow_nor_lose_the_peak(layer):
    module, params, x, batch = layer
    params["attention"]["query"]["kernel"] *= 1e3
    with jax.default_matmul_precision("highest"):
        y = module.apply({"params": params}, x, batch)
    assert np.isfinite(y).all()


def test_gradient_equals_finite_differences_in_float64():
    with jax.enable_x64(True):
        config = EncoderConfig("bert", 40, 8, 1, 2, 12, 12)
        module = Layer(config, jnp.float64)
        x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, 8)))
        batch = {"attention_mask": jnp.ones((2, 5), jnp.int32)}
        params = module.init(jax.random.key(0), x, batch)["params"]
        params = jax.tree.map(lambda a: a.astype(jnp.float64), random_like(params, 3))
        weight = jnp.asarray(np.random.default_rng(4).normal(size=x.shape))

        @jax.jit
        def total(params):
            return (module.apply({"params": params}, x, batch) * weight).sum()

        slopes = jax.jit(jax.grad(total))(params)
        direction = random_like(params, 5)

        def along(step):
            moved = jax.tree.map(lambda a, d: a + step * d, params, direction)
            return float(total(moved))

        numeric = (along(1e-2) - along(-1e-2)) / 2e-2
        dots = jax.tree.map(lambda a, b: (a * b).sum(), slopes, direction)
        # Layer norm and scores are float32 inside, which bounds the agreement.
        assert float(sum(jax.tree.leaves(dots))) == pytest.approx(numeric, rel=5e-3)


def embed(config, batch, params=None):
    module = Embeddings(config)
    params = params or module.init(jax.random.key(0), batch)["params"]
    return module.apply({"params": params}, batch), params


def test_bert_embeddings_are_the_norm_of_three_rows():
    ids = np.array([[1, 5, 0], [7, 7, 2]])
    types = np.array([[0, 1, 1], [0, 0, 1]])
    batch = {"input_ids": ids, "token_type_ids": types}
    x, params = embed(CONFIG, batch)
    p = as64(params)
    rows = p["word"]["embedding"][ids] + p["position"]["embedding"][:3]
    rows = rows + p["token_type"]["embedding"][types]
    np.testing.assert_allclose(x, norm(rows, p["norm"], 1e-12), atol=2e-5)
    without, _ = embed(CONFIG, {"input_ids": ids}, params)
    zeros, _ = embed(CONFIG, batch | {"token_type_ids": 0 * types}, params)
    np.testing.assert_array_equal(without, zeros)


def test_roberta_counts_real_tokens_from_the_padding_id():
    config = EncoderConfig("roberta", 40, 16, 1, 4, 24, 12, 1, 1e-5, pad_token_id=1)
    ids = np.array([[5, 6, 7, 1], [1, 5, 1, 6]])
    x, params = embed(
        config, {"input_ids": ids, "token_type_ids": np.ones((2, 4), int)}
    )
    p = as64(params)
    places = np.array([[2, 3, 4, 1], [1, 2, 1, 3]])
    rows = p["word"]["embedding"][ids] + p["position"]["embedding"][places]
    rows = rows + p["token_type"]["embedding"][0]
    np.testing.assert_allclose(x, norm(rows, p["norm"], 1e-5), atol=2e-5)


@pytest.mark.parametrize(("family", "longest"), [("bert", 12), ("roberta", 10)])
def test_rows_longer_than_the_position_table_are_refused(family, longest):
    config = EncoderConfig(family, 40, 16, 1, 4, 24, 12, pad_token_id=1)
    embed(config, {"input_ids": np.ones((1, longest), int)})
    with pytest.raises(ValueError, match=f"positions for {longest}: .*max_length"):
        embed(config, {"input_ids": np.ones((1, longest + 1), int)})


def test_pooler_is_tanh_of_the_first_token():
    hidden = np.random.default_rng(6).normal(size=(2, 3, 16)).astype(np.float32)
    module = Pooler(CONFIG)
    params = random_like(module.init(jax.random.key(0), hidden)["params"], 7)
    p = as64(params)
    expected = np.tanh(hidden[:, 0] @ p["kernel"] + p["bias"])
    np.testing.assert_allclose(
        module.apply({"params": params}, hidden), expected, atol=1e-6
    )
