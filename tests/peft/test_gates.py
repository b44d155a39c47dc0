"""Gates: what reads a module with them sees the update that they make."""

import numpy as np
import pytest

from fusion_jax.checkpoints.modules import load_module, save_module
from fusion_jax.checkpoints.modules.peft_tensors import LAYERED, layered_tensors
from fusion_jax.peft import PeftConfig, with_module
from fusion_jax.peft.combine import combine
from fusion_jax.peft.gates import gated, ungated
from fusion_jax.peft.low_rank import updates_of
from fusion_jax.peft.module import Module
from tests.checkpoints.modules import files

CONFIG = PeftConfig(
    targets=("layer_1/attention/(query|value)",), rank=2, alpha=6, use_rslora=True
)
PATHS = [f"encoder/layer_1/attention/{name}" for name in ("query", "value")]


@pytest.fixture
def plain():
    """On the second of the host's two layers alone."""
    return files.module(CONFIG)


@pytest.fixture
def with_gate(plain):
    """The same update with gates."""
    config, factors, (gate,) = gated({"one": plain})
    return Module(config, with_module(factors, gate), plain.host)


def assert_same_updates(found, expected):
    found, expected = updates_of(found), updates_of(expected)
    assert list(found) == list(expected) == PATHS
    for path in PATHS:
        a, b = (x[path].a @ x[path].b for x in (found, expected))
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_gate_counts_in_a_merge(plain, with_gate):
    assert_same_updates(with_gate, plain)
    halves = combine("concatenate", [with_gate, with_gate], [0.5, 0.5]).module
    assert_same_updates(halves, plain)


def test_a_gate_is_written_for_peft_as_what_it_does(plain, with_gate, tmp_path):
    folder = save_module(tmp_path / "out", with_gate, form="peft")
    assert_same_updates(load_module(folder), plain)
    with pytest.raises(ValueError, match=r"query/lora/gate: .*no place for 'gate'"):
        leaves = files.leaves(with_gate)
        layered_tensors(leaves, "bert", prefixed=True, before=LAYERED)


def test_a_module_of_some_layers_is_loaded_on_its_host_without_its_gates(
    plain, with_gate, tmp_path
):
    folder = save_module(tmp_path / "out", ungated(with_gate))
    assert_same_updates(load_module(folder, host=files.host()), plain)
    assert ungated(plain) is plain


def test_a_residual_init_cannot_stand_beside_others(plain):
    bound = plain._replace(config=PeftConfig(rank=2, init="pissa"))
    with pytest.raises(ValueError, match=r"two has init 'pissa'.*peft\.portable first"):
        gated({"one": plain, "two": bound})
