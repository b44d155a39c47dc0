"""Every way to merge on every kind that it serves, in a sweep over the table."""

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft import init_module
from fusion_jax.peft.combine import combine
from fusion_jax.peft.combine_table import COMBINES
from fusion_jax.peft.low_rank import updates_of
from tests.peft.hosts import CONFIGS, host_of, moved

PAIRS = [
    (method, name)
    for method, record in COMBINES.items()
    for name, config in CONFIGS.items()
    if config.kind in record.kinds
]
# An update without a low rank is merged from the host's kernels.
EQUAL = [
    (method, name)
    for method, name in PAIRS
    if name != "dora" and not method.startswith("dare")
]


def modules(name):
    made = init_module(CONFIGS[name], host_of(), jax.random.key(0))
    return [moved(made, seed=seed) for seed in (1, 2)]


def options_of(method):
    return {"key": jax.random.key(0)} if COMBINES[method].key else {}


def test_every_kind_has_a_way():
    served = {kind for record in COMBINES.values() for kind in record.kinds}
    assert served == {config.kind for config in CONFIGS.values()}


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_weights_one_and_zero_return_the_module_itself(method, name):
    first, second = modules(name)
    options = options_of(method)
    assert combine(method, [first, second], [1, 0], **options).module is first
    assert combine(method, [first, second], [0, 1], **options).module is second


@pytest.mark.parametrize(("method", "name"), EQUAL)
def test_a_module_merged_with_itself_is_itself(method, name):
    first, _ = modules(name)
    full = {"density": 1.0} if "density" in COMBINES[method].options else {}
    merged = combine(method, [first, first], [0.4, 0.6], **full).module
    if first.config.kind == "lora" and method != "linear_factors":
        found, expected = updates_of(merged), updates_of(first)
        assert found.keys() == expected.keys()
        for path, update in expected.items():
            product = found[path].a @ found[path].b
            np.testing.assert_allclose(product, update.a @ update.b, atol=1e-5)
    found, expected = trees.flatten(merged.params), trees.flatten(first.params)
    for leaf in found:
        if "/lora/" not in leaf:
            np.testing.assert_allclose(found[leaf], expected[leaf], atol=1e-6)


def test_a_whole_grid_of_weights_is_linear_in_them():
    first, second = modules("lora_and_norms")
    one = combine("concatenate", [first, second], [0.25, 0.75]).module
    two = combine("concatenate", [first, second], [0.75, 0.25]).module
    mean = combine("concatenate", [one, two], [0.5, 0.5]).module
    plain = combine("concatenate", [first, second], [0.5, 0.5]).module
    found, expected = updates_of(mean), updates_of(plain)
    for path, update in expected.items():
        np.testing.assert_allclose(
            found[path].a @ found[path].b, update.a @ update.b, atol=1e-5
        )
    a, b = trees.flatten(mean.params), trees.flatten(plain.params)
    for leaf in a:
        if "/lora/" not in leaf:
            np.testing.assert_allclose(a[leaf], b[leaf], atol=1e-6)
