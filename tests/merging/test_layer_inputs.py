"""The tap that sums what layers read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.layer_inputs import (
    InputMoments,
    mean_moment,
    mirrored,
    second_moment,
    symmetric_product,
    token_weights,
)

BATCH = {
    "attention_mask": np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0]]),
    "mask": np.array([1.0, 1.0, 0.0]),
}


def test_weights_are_of_tokens_or_of_rows():
    np.testing.assert_array_equal(
        token_weights((3, 3, 5), BATCH), [1, 1, 0, 1, 0, 0, 0, 0, 0]
    )
    np.testing.assert_array_equal(token_weights((3, 1, 5), BATCH), [1, 1, 0])
    np.testing.assert_array_equal(token_weights((3, 5), BATCH), [1, 1, 0])
    no_rows = {"attention_mask": BATCH["attention_mask"]}
    np.testing.assert_array_equal(token_weights((3, 5), no_rows), [1, 1, 1])


@settings(max_examples=30)
@given(st.sampled_from([1, 6]), st.sampled_from([1, 4]), st.integers(0, 999))
def test_moments_are_those_of_the_rows_that_count(rows, width, seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, width)).astype(np.float32)
    weights = random.integers(0, 2, rows).astype(np.float32)
    kept = np.append(x, np.ones((rows, 1)), axis=1)[weights > 0].astype(np.float64)
    garbage = np.where(weights[:, None] > 0, x, np.inf)
    found = second_moment(jnp.asarray(garbage), jnp.asarray(weights))
    assert int(found.count) == len(kept)
    if len(kept):
        mean = kept.T @ kept / len(kept)
        np.testing.assert_allclose(mean_moment(found), mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 767, 768, 769, 1537])
def test_wide_products_are_computed_in_panels_and_are_symmetric(width):
    x = np.random.default_rng(0).normal(size=(7, width)).astype(np.float32)
    panels = symmetric_product(jnp.asarray(x))
    assert [len(panel) for panel in panels] == [
        min(768, width - start) for start in range(0, width, 768)
    ]
    found = mirrored(panels)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found, exact.T @ exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[:768, 768:], found[768:, :768].T)


def test_one_array_is_one_input_and_equal_arrays_are_two():
    x = jnp.ones((3, 3, 2))
    moments = InputMoments(BATCH, "a/.*|b/.*")
    for name, read in (("a/q/kernel", x), ("a/k/kernel", x), ("b/kernel", x + 0)):
        assert moments(name, read, read) is None
    moments("c/kernel", x, x)
    assert moments.readers == {
        "a/q/kernel": "a/q",
        "a/k/kernel": "a/q",
        "b/kernel": "b",
    }
    assert moments.sums.keys() == {"a/q", "b"}
    np.testing.assert_array_equal(moments.sums["b"].gram[0], np.full((2, 2), 3))
    np.testing.assert_array_equal(mean_moment(moments.sums["b"]), np.ones((3, 3)))


def test_a_layer_that_runs_twice_is_refused():
    x = jnp.ones((3, 3, 2))
    moments = InputMoments(BATCH)
    moments("a/kernel", x, x)
    with pytest.raises(ValueError, match="a/kernel: runs twice"):
        moments("a/kernel", x + 1, x)


def test_half_precision_inputs_are_summed_in_float32():
    x = jnp.full((1, 300, 1), 1 + 2**-7, jnp.bfloat16)
    batch = {"attention_mask": np.ones((1, 300))}

    def traced(x):
        moments = InputMoments(batch)
        moments("a/kernel", x, x)
        return moments.sums["a"]

    found = jax.jit(traced)(x)
    assert found.gram[0].dtype == found.total.dtype == jnp.float32
    np.testing.assert_allclose(found.gram[0], 300 * (1 + 2**-7) ** 2, rtol=1e-6)
