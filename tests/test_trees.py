"""Trees by name: rules, stacks, partitions, reports."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusion_jax
from fusion_jax import trees

NAMES = st.text("abc_0123", min_size=1, max_size=4)
TREES = st.recursive(
    st.integers(0, 5).map(lambda n: np.arange(n, dtype=np.float32)),
    lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(TREES)
def test_unflatten_is_the_inverse_of_flatten(tree):
    again = trees.unflatten(trees.flatten(tree))
    assert trees.mismatches([tree, again]) == []


@given(TREES, st.sampled_from(["a.*", ".*0", "x", ".*"]))
def test_combine_is_the_inverse_of_partition(tree, pattern):
    chosen, rest = trees.partition(tree, pattern)
    again = trees.combine(chosen, rest)
    assert trees.mismatches([tree, again]) == []


@given(TREES, st.integers(1, 4))
def test_unstack_is_the_inverse_of_stack(tree, count):
    experts = [
        trees.map_with_names(lambda _, x, k=k: x + k, tree) for k in range(count)
    ]
    for expert, again in zip(
        experts, fusion_jax.unstack(fusion_jax.stack(experts)), strict=True
    ):
        for name, leaf in trees.flatten(expert).items():
            np.testing.assert_array_equal(leaf, trees.flatten(again)[name])


def test_the_first_rule_that_matches_in_full_wins():
    rules = [("layer_0/.*", "first"), ("layer_.*", "later"), (".*", "rest")]
    assert trees.match_rules(rules, ["layer_0/w", "layer_01/w", "head"]) == {
        "layer_0/w": "first",
        "layer_01/w": "later",
        "head": "rest",
    }


def test_uncovered_names_are_listed_together():
    with pytest.raises(ValueError, match=r"freeze: no rule covers 'b', 'c'"):
        trees.match_rules([("a", 1)], ["a", "b", "c"], what="freeze")


def test_stacking_reports_every_mismatch_at_once():
    one = {"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(1, np.float32)}
    two = {"a": np.zeros(4), "d": np.zeros(3), "c": np.zeros(1, np.float16)}
    with pytest.raises(trees.TreeMismatch) as error:
        fusion_jax.stack([one, two], ["sst2", "mnli"])
    message = str(error.value)
    for part in [
        "4 leaves differ",
        "a: shape (2,) in sst2, (4,) in mnli",
        "b: in sst2, missing in mnli",
        "d: in mnli, missing in sst2",
        "c: dtype float32 in sst2, float16 in mnli",
    ]:
        assert part in message


def test_a_stack_needs_trees_and_equal_leading_axes():
    with pytest.raises(ValueError, match="no trees given"):
        fusion_jax.stack([])
    with pytest.raises(trees.TreeMismatch, match="a: 2, b: 3"):
        trees.stack_size({"a": jnp.zeros((2, 1)), "b": jnp.zeros((3, 1))})


def test_combine_refuses_a_leaf_that_is_there_twice():
    with pytest.raises(trees.TreeMismatch, match="'a/b'"):
        trees.combine({"a": {"b": 1}}, {"a": {"b": 2}})


def test_sizes_count_elements_and_bytes():
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)}
    assert trees.num_params(tree) == 10
    assert trees.num_bytes(tree) == 32
