"""Ports of modules that stand on some of their host's layers alone."""

import warnings

import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.port import port
from tests.peft import port_hosts as hosts
from tests.peft.test_port import module_of

QUERY = "encoder/layer_{}/attention/query/lora"


@pytest.fixture(scope="module")
def params():
    return hosts.params_of(hosts.CONFIG)


@pytest.fixture(scope="module")
def origin(params):
    """Of four layers."""
    return hosts.host_of(hosts.CONFIG, params, "origin", states=False)


@pytest.fixture(scope="module")
def half():
    config = hosts.shallower(hosts.CONFIG, 2)
    return hosts.host_of(config, hosts.params_of(config), "half", states=False)


def lora_on(layers, params):
    targets = (f"layer_({'|'.join(map(str, layers))})/attention/query",)
    return module_of(
        PeftConfig("lora", targets=targets, rank=2, replaces=("head/.*",)), params
    )


def test_a_module_of_which_nothing_is_taken_is_refused(params, origin, half):
    told = r"leaves at layers 1, 3 of origin, and half takes layers 0, 2 alone"
    with pytest.raises(trees.TreeMismatch, match=told):
        port(lora_on((1, 3), params), origin, half, "skip")


def test_layers_that_are_not_taken_are_told(params, origin, half):
    with pytest.warns(UserWarning, match="at layers 1, 3 of origin are in no layer"):
        port(lora_on((0, 1, 2, 3), params), origin, half, "skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        port(lora_on((0, 2), params), origin, half, "skip")
        port(lora_on((0, 1, 2, 3), params), origin, half, "average")


def test_a_layer_without_an_update_counts_as_0_in_a_mean(params, origin, half):
    module = lora_on((0, 2, 3), params)
    found = trees.flatten(port(module, origin, half, "average").params)
    own = {
        n: np.asarray(x, np.float64) for n, x in trees.flatten(module.params).items()
    }

    def product(leaves, layer):
        a, b = (np.asarray(leaves[f"{QUERY.format(layer)}/{x}"]) for x in "ab")
        return a.astype(np.float64) @ b

    np.testing.assert_allclose(product(found, 0), product(own, 0) / 2, atol=1e-6)
    u, s, v = np.linalg.svd((product(own, 2) + product(own, 3)) / 2)
    np.testing.assert_allclose(product(found, 1), (u[:, :2] * s[:2]) @ v[:2], atol=1e-6)


@pytest.mark.parametrize("kind", ["adapter", "compacter"])
def test_an_adapter_of_one_of_two_layers_adds_half(kind, params, origin, half):
    targets = (r"layer_(0|2)/mlp/down",)
    module = module_of(PeftConfig(kind, targets=targets, bottleneck=8), params)
    found = trees.flatten(port(module, origin, half, "average").params)
    own = trees.flatten(module.params)
    scaled = {"adapter": ("up/kernel", "up/bias"), "compacter": ("up/right", "up/bias")}
    for name, leaf in found.items():
        by = 0.5 if name.endswith(scaled[kind]) else 1.0
        mine = own[name.replace("layer_1", "layer_2")]
        np.testing.assert_array_equal(leaf, by * np.asarray(mine), err_msg=name)


def test_a_scale_is_the_mean_of_those_there_are(params, origin, half):
    config = PeftConfig("ia3", targets=("layer_(0|2)/attention/key",))
    module = module_of(config, params)
    found = trees.flatten(port(module, origin, half, "average").params)
    own = trees.flatten(module.params)
    for name, leaf in found.items():
        mine = own[name.replace("layer_1", "layer_2")]
        np.testing.assert_array_equal(leaf, mine, err_msg=name)
