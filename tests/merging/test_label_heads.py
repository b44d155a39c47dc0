"""Columns of a shared head come from those who have trained them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fusion_jax import trees
from fusion_jax.merging.label_heads import merge_label_columns, owned_labels
from fusion_jax.merging.linear import weighted_average
from fusion_jax.merging.regmean import regmean

C: Any = np.asarray([0.5, 1.5, 1.0], np.float32)


def mean(heads, coefficients, _):
    return weighted_average(heads, coefficients, normalize=True)


def heads_of(num_experts, labels, seed=0):
    random = np.random.default_rng(seed)
    return {
        "classifier": {
            "kernel": random.normal(size=(num_experts, 4, labels)).astype(np.float32),
            "bias": random.normal(size=(num_experts, labels)).astype(np.float32),
        }
    }


@settings(max_examples=40)
@given(
    arrays.arrays(
        bool, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.booleans()
    )
)
def test_each_column_is_the_mean_of_its_owners(owners):
    experts, labels = owners.shape
    heads = heads_of(experts, labels)
    row = np.linspace(0.5, 2, experts)
    found = trees.flatten(merge_label_columns(mean, heads, row, owners))
    for name, x in trees.flatten(heads).items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape[1:]
        for label in range(labels):
            who = np.flatnonzero(owners[:, label])
            who = who if len(who) else np.arange(experts)
            parts = x[who, ..., label].astype(np.float64)
            right = np.tensordot(row[who] / row[who].sum(), parts, 1)
            column = found[name][..., label]
            np.testing.assert_allclose(column, right, rtol=1e-5, atol=1e-6)
            if len(who) == 1:
                np.testing.assert_array_equal(column, x[who[0], ..., label])


def test_where_all_own_all_or_nobody_owns_any_it_is_the_plain_merge():
    heads = heads_of(3, 5)
    plain = trees.flatten(mean(heads, C, None))
    for owners in (np.ones((3, 5), bool), np.zeros((3, 5), bool)):
        found = trees.flatten(merge_label_columns(mean, heads, C, owners))
        for name, x in plain.items():
            np.testing.assert_array_equal(found[name], x)


def test_the_merge_is_called_once_for_each_set_of_owners():
    calls = []

    def merge(heads, coefficients, indices):
        calls.append((indices, np.asarray(coefficients).tolist()))
        assert all(len(x) == len(indices) for x in jax.tree.leaves(heads))
        return mean(heads, coefficients, indices)

    owners = np.asarray(
        [[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 1], [0, 0, 1, 0, 1, 1]], bool
    )
    merge_label_columns(merge, heads_of(3, 6), C, owners)
    # {0, 1}, {0}, {1, 2} twice, and {0, 1, 2}, which nobody's label shares.
    assert sorted(calls) == [
        ((0,), [0.5]),
        ((0, 1), [0.5, 1.5]),
        ((0, 1, 2), [0.5, 1.5, 1.0]),
        ((1, 2), [1.5, 1.0]),
    ]


@given(st.permutations(range(6)), st.integers(0, 2**18 - 1))
@settings(max_examples=20)
def test_the_order_of_labels_does_not_matter(order, bits):
    owners = np.asarray([bits >> n & 1 for n in range(18)], bool).reshape(3, 6)
    heads, order = heads_of(3, 6), list(order)
    one = merge_label_columns(mean, heads, C, owners)
    turned = jax.tree.map(lambda x: x[..., order], heads)
    two = merge_label_columns(mean, turned, C, owners[:, order])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[..., order], b), dict(one), two
    )


def test_indices_choose_the_statistics_of_the_same_experts():
    heads = heads_of(3, 4)
    x = np.random.default_rng(5).normal(size=(3, 20, 4)).astype(np.float32)
    grams = np.einsum("kni,knj->kij", x, x) / 20
    name = "classifier/kernel"

    def merge(heads, coefficients, indices):
        return regmean(heads, coefficients, statistics={name: grams[list(indices)]})

    owners = np.asarray([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 0]], bool)
    found = trees.flatten(merge_label_columns(merge, heads, C, owners))[name]
    pair = {"classifier": {n: v[1:] for n, v in heads["classifier"].items()}}
    right = regmean(pair, C[1:], statistics={name: grams[1:]})["classifier"]["kernel"]
    np.testing.assert_array_equal(found[:, 1], right[:, 1])
    np.testing.assert_array_equal(found[:, 2], heads["classifier"]["kernel"][1][:, 2])


def test_a_population_of_coefficients_equals_a_loop():
    heads, owners = heads_of(3, 5), np.eye(3, 5, dtype=bool) | np.eye(3, 5, 1, bool)
    rows = jnp.asarray([[0.2, 0.5, 0.3], [1, 2, 3], [0, 1, 1]])

    def merge(row):
        return merge_label_columns(mean, heads, row, owners)

    # The first label is of expert 0 alone, whose weight is never 0.
    together = jax.jit(jax.vmap(merge))(rows[:2])
    for p in range(2):
        jax.tree.map(
            lambda a, b, p=p: np.testing.assert_allclose(a[p], b, rtol=1e-6, atol=1e-6),
            together,
            merge(rows[p]),
        )
    with pytest.raises(ValueError, match=r"labels \[0\]: experts \[0\]"):
        merge(rows[2])


def test_mismatches_are_all_named():
    heads: dict[str, Any] = dict(heads_of(3, 5))
    heads["extra"] = np.zeros((2, 5), np.float32)
    heads["turned"] = np.zeros((3, 5, 4), np.float32)
    with pytest.raises(ValueError, match="experts first and the labels last") as caught:
        merge_label_columns(mean, heads, np.ones(2), np.ones((3, 5), bool))
    for said in (
        "coefficients: shape (2,); expected (3,)",
        "extra: shape (2, 5); expected [3, ..., 5]",
        "turned: shape (3, 5, 4)",
    ):
        assert said in str(caught.value)
    with pytest.raises(ValueError, match=r"owners: int64 of shape \(3, 5\)"):
        merge_label_columns(mean, heads_of(3, 5), C, np.ones((3, 5), np.int64))
    with pytest.raises(ValueError, match=r"experts \[0, 1, 2\] must return") as caught:
        merge_label_columns(
            lambda heads, *_: {"classifier": {"kernel": heads["classifier"]["kernel"]}},
            heads_of(3, 5),
            C,
            np.ones((3, 5), bool),
        )
    assert "classifier/bias: in only one" in str(caught.value)
    assert "classifier/kernel: shape (3, 4, 5); expected (4, 5)" in str(caught.value)


def test_labels_are_owned_from_a_least_number_of_examples_on():
    counts = np.asarray([[0, 1, 5], [3, 0, 2]])
    np.testing.assert_array_equal(owned_labels(counts), counts > 0)
    np.testing.assert_array_equal(
        owned_labels(counts, 3), [[False, False, True], [True, False, False]]
    )
    with pytest.raises(ValueError, match="least: 0"):
        owned_labels(counts, 0)
