import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.models.layers import Dense, Dropout, LayerNorm, random_bits


def test_dense_is_a_product_over_the_last_axis_for_any_rank():
    generator = np.random.default_rng(0)
    layer = Dense(3)
    for shape in [(5,), (2, 5), (2, 4, 5)]:
        x = generator.normal(size=shape).astype(np.float32)
        params = layer.init(jax.random.key(0), x)["params"] | {"bias": jnp.arange(3.0)}
        expected = x.astype(np.float64) @ params["kernel"] + np.arange(3.0)
        y = layer.apply({"params": params}, x)
        assert y.shape == (*shape[:-1], 3)
        np.testing.assert_allclose(y, expected, atol=1e-6)


def test_layer_norm_agrees_with_float64_and_stays_float32_inside():
    x = np.random.default_rng(1).normal(3.0, 2.0, size=(4, 6, 16))
    scale, bias = np.linspace(0.5, 2, 16), np.linspace(-1, 1, 16)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias
    variables = {"params": {"scale": jnp.array(scale), "bias": jnp.array(bias)}}
    y = LayerNorm(1e-5).apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, expected, atol=2e-6)
    rounded = LayerNorm(1e-5, jnp.bfloat16).apply(
        variables, jnp.asarray(x, jnp.float32)
    )
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, y.astype(jnp.bfloat16))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_the_named_share(rate):
    x = jnp.ones((200, 501))
    key = jax.random.key(0)
    y = Dropout(rate).apply({}, x, True, rngs={"dropout": key})
    share = float((y == 0).mean())
    # Five standard errors of the share of 100,200 independent drops.
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-4)


def test_dropout_that_is_inactive_or_of_rate_zero_is_the_identity():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, True), x)


def test_random_bits_are_uniform_and_uncorrelated_between_halves_of_a_word():
    bits = np.asarray(random_bits(jax.random.key(3), (9, 1111)), np.float64).reshape(-1)
    assert bits.size == 9999
    assert abs(bits.mean() / 65535 - 0.5) < 5 / np.sqrt(12 * bits.size)
    pairs = np.corrcoef(bits[:-1:2], bits[1::2])[0, 1]
    assert abs(pairs) < 5 / np.sqrt(bits.size / 2)
