"""Meshes and rules."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from fusion_jax.training.sharding import (
    batch_shardings,
    default_mesh,
    make_mesh,
    place,
    replicated,
    shardings,
)
from fusion_jax.trees import flatten

RULES = ((r".*/kernel", PartitionSpec(None, "model")), (r".*", PartitionSpec()))
SHAPES = {
    "up": {"kernel": np.zeros((4, 6)), "bias": np.zeros(6)},
    "head": {"kernel": np.zeros((6, 7))},
}

needs_8_devices = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs 8 devices; set JAX_NUM_CPU_DEVICES=8"
)


def specs(tree):
    return {name: tuple(sharding.spec) for name, sharding in flatten(tree).items()}


@needs_8_devices
def test_axes_are_auto_and_minus_one_takes_the_rest():
    mesh = make_mesh(expert=2, data=-1, model=2)
    assert dict(mesh.shape) == {"expert": 2, "data": 2, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_one_device_is_a_mesh_without_ceremony():
    assert default_mesh().size == 1


def test_too_few_devices_are_counted_in_the_error():
    count = len(jax.devices())
    with pytest.raises(ValueError, match=f"needs {count + 1} devices; there are"):
        make_mesh(data=count + 1)


@needs_8_devices
def test_rules_lay_out_leaves_and_stacks():
    mesh = make_mesh(expert=2, model=2)
    assert specs(shardings(SHAPES, RULES, mesh)) == {
        "up/kernel": (None, "model"),
        "up/bias": (),
        "head/kernel": (None, None),  # 7 classes over 2 devices lie whole
    }
    stacked = jax.tree.map(lambda x: np.stack([x, x]), SHAPES)
    assert specs(shardings(stacked, RULES, mesh, stacked=True)) == {
        "up/kernel": ("expert", None, "model"),
        "up/bias": ("expert",),
        "head/kernel": ("expert", None, None),
    }


def test_uncovered_leaves_and_rules_of_too_many_axes_are_named():
    mesh = default_mesh()
    with pytest.raises(ValueError, match="up/bias"):
        shardings(SHAPES, RULES[:1], mesh)
    with pytest.raises(ValueError, match=r"up/bias: .*for shape \(6,\)"):
        shardings(SHAPES, ((r".*", PartitionSpec(None, "model")),), mesh)


@needs_8_devices
def test_rows_are_spread_over_data_and_what_has_no_rows_is_not():
    mesh = make_mesh(expert=2, data=4)
    batch = {
        "input_ids": np.zeros((8, 5)),
        "label_mask": np.ones(4),
        "task": np.int32(1),
    }
    assert specs(batch_shardings(batch, mesh)) == {
        "input_ids": ("data",),
        "label_mask": (),
        "task": (),
    }
    stacked = {name: np.stack([x, x]) for name, x in batch.items()}
    assert specs(batch_shardings(stacked, mesh, stacked=True)) == {
        "input_ids": ("expert", "data"),
        "label_mask": ("expert",),
        "task": ("expert",),
    }


def test_a_placed_copy_may_be_donated_without_harm():
    start = jax.numpy.arange(1000.0)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    for source in (start, np.asarray(start)):
        add(place(source, replicated(default_mesh()))).block_until_ready()
        np.testing.assert_array_equal(source, np.arange(1000.0))
