"""Arcee Fusion copies the entries whose importance is an outlier, without sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.merging.arcee_fusion import arcee_fusion
from tests.merging.task_vectors import experts_and_base

ROW = jnp.ones(1)
SHAPES = {"matrix": (9, 7), "vector": (11,), "scalar": (), "two": (2,), "tall": (5, 1)}


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def importance(expert, base, input_axis):
    if base.ndim == 0:
        return np.zeros(())
    axis = input_axis if base.ndim > 1 else -1
    x, y = np.moveaxis(expert, axis, -1), np.moveaxis(base, axis, -1)
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape[:-1]):
        p, q = softmax(x[index]), softmax(y[index])
        out[index] = np.abs(x[index] - y[index]) * np.sum(p * np.log(p / q))
    return np.moveaxis(out, -1, axis)


def reference(expert, base, input_axis=-2):
    expert, base = np.asarray(expert, np.float64), np.asarray(base, np.float64)
    scores = importance(expert, base, input_axis)
    n = scores.size
    if n == 1:
        return expert
    descending = np.sort(scores.reshape(-1))[::-1]
    third = descending[int(np.floor(n / 4))]
    median = descending[int(np.ceil(n / 2)) - 1]
    first = descending[min(n - int(np.ceil(n / 4)), n - 2)]
    return np.where(scores >= median + 1.5 * (third - first), expert, base)


@pytest.mark.parametrize("input_axis", [-2, -1])
def test_the_merge_equals_a_float64_reference(input_axis):
    stack, base = experts_and_base(num_experts=1, shapes=SHAPES, scale=0.5)
    merged = arcee_fusion(stack, ROW, base=base, input_axis=input_axis)
    for name in SHAPES:
        expected = reference(stack[name][0], base[name], input_axis)
        # Every entry is one of the two, so the nearest float32 is exact.
        np.testing.assert_array_equal(merged[name], expected.astype(np.float32), name)
    np.testing.assert_array_equal(merged["frozen"], base["frozen"])
    matrix = np.asarray(merged["matrix"])
    assert 0 < np.sum(matrix == stack["matrix"][0]) < matrix.size / 2


def test_small_changes_are_ranked_as_in_float64():
    # sum p log(p/q) itself is rounding noise for such deltas in float32.
    random = np.random.default_rng(2)
    base = random.normal(size=(40, 16)).astype(np.float32)
    size = 10.0 ** random.uniform(-5, -3, size=(1, 16))
    expert = base + (size * random.normal(size=base.shape)).astype(np.float32)
    merged = arcee_fusion(
        {"a": jnp.asarray(expert)[None]}, ROW, base={"a": jnp.asarray(base)}
    )["a"]
    np.testing.assert_array_equal(merged, reference(expert, base).astype(np.float32))


def test_large_changes_stay_finite():
    base = jnp.asarray([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    expert = base + jnp.asarray([[500.0, 0.0], [0.0, -300.0], [0.0, 0.1]])
    merged = arcee_fusion({"a": expert[None]}, ROW, base={"a": base})["a"]
    np.testing.assert_array_equal(merged[0, 0], 500.0)
    assert np.isfinite(merged).all()


def test_the_layouts_of_flax_and_pytorch_give_the_same_model():
    stack, base = experts_and_base(num_experts=1, shapes=SHAPES, scale=0.5)
    stack, base = stack["matrix"], base["matrix"]
    flax = arcee_fusion({"a": stack}, ROW, base={"a": base})["a"]
    torch = arcee_fusion(
        {"a": jnp.swapaxes(stack, 1, 2)}, ROW, base={"a": base.T}, input_axis=-1
    )["a"]
    np.testing.assert_array_equal(flax, torch.T)


def test_jit_and_bfloat16_give_entries_of_the_two_models():
    stack, base = experts_and_base(num_experts=1, shapes=SHAPES, scale=0.5)
    half = {n: x.astype(jnp.bfloat16) for n, x in stack.items()}
    anchor = {n: x.astype(jnp.bfloat16) for n, x in base.items()}
    merged = jax.jit(lambda s: arcee_fusion(s, ROW, base=anchor))(half)
    for name, leaf in merged.items():
        assert leaf.dtype == jnp.bfloat16
        expected = reference(half[name][0], anchor[name])
        np.testing.assert_array_equal(np.asarray(leaf, np.float64), expected, name)


def test_more_than_one_expert_and_a_missing_base_are_refused():
    stack, base = experts_and_base(num_experts=2)
    with pytest.raises(ValueError, match="arcee_fusion: 2 experts given, takes one"):
        arcee_fusion(stack, jnp.ones(2), base=base)
    with pytest.raises(ValueError, match="arcee_fusion: needs base"):
        arcee_fusion(stack, jnp.ones(2))


@settings(max_examples=20)
@given(
    shape=st.sampled_from([(1,), (2,), (3,), (4,), (3, 5)]),
    seed=st.integers(0, 2**16),
)
def test_the_most_important_entry_is_always_of_the_base_or_copied_first(shape, seed):
    random = np.random.default_rng(seed)
    base = random.normal(size=shape).astype(np.float32)
    expert = (base + random.normal(size=shape)).astype(np.float32)
    merged = np.asarray(
        arcee_fusion(
            {"a": jnp.asarray(expert)[None]}, ROW, base={"a": jnp.asarray(base)}
        )["a"]
    )
    copied = merged == expert
    assert np.all(copied | (merged == base))
    scores = importance(expert.astype(np.float64), base.astype(np.float64), -2)
    if copied.any() and not copied.all():
        assert scores[copied].min() >= scores[~copied].max() * (1 - 1e-4)
