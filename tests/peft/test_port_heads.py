"""Heads with a layer of their own before the classes go along with a module."""

import dataclasses

import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.port import port
from tests.peft import port_hosts as hosts
from tests.peft.test_port import module_of, same_leaves

CONFIG = PeftConfig("lora", rank=2, replaces=("head/.*",))
INNER = {"roberta": "head/dense", "distilbert": "head/pre_classifier"}


@pytest.mark.parametrize("family", INNER)
@pytest.mark.parametrize("method", ["copy", "skip", "average", "correlation"])
def test_a_host_gives_the_head_back(family, method):
    config = dataclasses.replace(hosts.CONFIG, family=family, num_layers=2)
    params = hosts.params_of(config)
    host = hosts.host_of(config, params, states=False)
    host = host._replace(states=hosts.random_states(host.params))
    module = module_of(CONFIG, params)
    assert f"{INNER[family]}/kernel" in trees.flatten(module.params)
    same_leaves(module, port(module, host, host, method))


@pytest.mark.parametrize("family", INNER)
def test_a_head_reads_the_stream_and_its_inside_is_its_own(family):
    """On a wider host with a pooler beside it, which such a head does not read."""
    config = dataclasses.replace(hosts.CONFIG, family=family, num_layers=2)
    wide = dataclasses.replace(config, hidden_size=20, intermediate_size=30)
    ends = []
    for one in (config, wide):
        host = hosts.host_of(one, hosts.params_of(one), states=False)
        square = np.ones((one.hidden_size, 12), np.float32)
        encoder = {**host.params["encoder"], "pooler": {"kernel": square}}
        host = host._replace(params={"encoder": encoder})
        ends.append(host._replace(states=hosts.random_states(host.params)))
    module = module_of(CONFIG, hosts.params_of(config))
    own = trees.flatten(module.params)
    origin, receiver = ends
    found = trees.flatten(port(module, origin, receiver, "correlation").params)
    inner = f"{INNER[family]}/kernel"
    assert own[inner].shape == (16, 16) and found[inner].shape == (20, 16)
    for name in own:
        if name.startswith("head/") and name != inner:
            np.testing.assert_array_equal(found[name], own[name], err_msg=name)
