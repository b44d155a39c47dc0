import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fusion_jax.models.activations import ACTIVATIONS, gelu

POINTS = np.concatenate([np.linspace(-12, 12, 4001), [-40.0, 40.0, 0.0]])


def exact_gelu(x):
    return x * special.ndtr(x)


def test_gelu_is_the_exact_one_everywhere():
    values = np.asarray(gelu(jnp.asarray(POINTS, jnp.float32)), np.float64)
    np.testing.assert_allclose(values, exact_gelu(POINTS), rtol=1e-6, atol=2e-6)


def test_gradient_of_gelu_is_the_exact_one():
    slopes = jax.vmap(jax.grad(gelu))(jnp.asarray(POINTS, jnp.float32))
    density = np.exp(-0.5 * POINTS**2) / np.sqrt(2 * np.pi)
    expected = special.ndtr(POINTS) + POINTS * density
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_keep_dtype_and_have_finite_gradients(name):
    x = jnp.linspace(-30, 30, 61, dtype=jnp.bfloat16)
    assert ACTIVATIONS[name](x).dtype == jnp.bfloat16
    assert np.isfinite(jax.grad(lambda x: ACTIVATIONS[name](x).sum())(x)).all()
