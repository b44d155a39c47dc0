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
