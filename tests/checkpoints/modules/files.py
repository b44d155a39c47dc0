"""Modules with all leaves moved, their hosts, and files that were tampered with."""

import json

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from fusion_jax import trees
from fusion_jax.checkpoints.modules import Host
from fusion_jax.checkpoints.tensors import hash_params
from fusion_jax.peft import init_module
from tests.peft.hosts import WIDTH, host_of, moved


def host(family="bert"):
    params = host_of(family)
    about = {
        "family": family,
        "hidden_size": WIDTH,
        "num_layers": 2,
        "num_heads": 2,
        "sha256": hash_params({"encoder": params["encoder"]}),
        "name": f"tiny-{family}",
    }
    return Host(about, params)


def module(config, family="bert", seed=1):
    given = host(family)
    made = init_module(config, given.params, jax.random.key(0), about=given.about)
    return moved(made, seed=seed)


def leaves(one):
    return {name: np.asarray(leaf) for name, leaf in trees.flatten(one.params).items()}


def assert_same_leaves(found, expected):
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def change_config(folder, name="adapter_config.json", **values):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_tensors(folder, change, name="adapter_model.safetensors"):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
