"""Where arrays lie: a mesh over experts, data and model, and regex rules for leaves.

Models know no mesh. `jax.jit` (which is what pjit is called now) receives shardings
from here and puts in the communication. One device is a mesh of 1 x 1 x 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusion_jax.trees import Rules, flatten, match_rules, unflatten
from fusion_jax.types import Params

AXES = ("expert", "data", "model")

WITHOUT_ROWS = ("label_mask", "task")
"""Entries of a batch whose leading axis is not the example."""


def make_mesh(
    expert: int = 1,
    data: int = 1,
    model: int = 1,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh of Auto axes 'expert', 'data', 'model'.

    Args:
      expert: how many ways the experts of a stack are spread.
      data: how many ways the rows of a batch are spread; -1 takes what is left.
      model: how many ways each layer is split.
      devices: default all devices; the first expert x data x model are used.

    Raises:
      ValueError: fewer devices than the axes ask for.
    """
    devices = list(jax.devices() if devices is None else devices)
    if data == -1:
        data = max(len(devices) // (expert * model), 1)
    needed = expert * data * model
    if min(expert, data, model) < 1 or needed > len(devices):
        raise ValueError(
            f"a mesh of expert={expert} x data={data} x model={model} needs {needed} "
            f"devices; there are {len(devices)}: make an axis smaller (1 switches it "
            "off)"
        )
    return jax.make_mesh(
        (expert, data, model),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[:needed],
    )


def default_mesh() -> Mesh:
    """One device; in a job of several processes the rows over all devices."""
    if jax.process_count() > 1:
        return make_mesh(data=-1)
    return make_mesh(devices=jax.local_devices()[:1])


def shardings(
    tree: Params, rules: Rules[PartitionSpec], mesh: Mesh, stacked: bool = False
) -> Params:
    """The sharding of every leaf by the first rule that matches its name.

    A mesh axis that does not divide an axis of a leaf (a head of 7 classes over 2
    devices) is left out for that leaf, which then lies whole.

    Args:
      tree: tree of arrays, or of shapes; leaves [...] or, stacked, [K, ...].
      rules: ordered (regex, PartitionSpec) pairs for the leaves without expert axis.
      mesh: mesh of `make_mesh`.
      stacked: whether leaves have a leading expert axis, spread over 'expert'.

    Returns:
      Tree of `NamedSharding`.

    Raises:
      ValueError: a leaf that no rule covers, or a rule of more axes than its leaf.
    """
    flat = flatten(tree)
    specs = match_rules(rules, flat, what="partition rules")
    too_long = [
        f"{name}: {spec} for shape {np.shape(flat[name])}"
        for name, spec in specs.items()
        if len(spec) + stacked > np.ndim(flat[name])
    ]
    if too_long:
        raise ValueError(
            "partition rules name more axes than their leaves have: "
            + "; ".join(too_long)
        )
    return unflatten(
        {
            name: _fitting(
                mesh, ("expert", *spec) if stacked else tuple(spec), flat[name].shape
            )
            for name, spec in specs.items()
        }
    )


def batch_shardings(
    batch: Mapping[str, Any], mesh: Mesh, stacked: bool = False
) -> dict[str, NamedSharding]:
    """Rows over 'data' and, stacked, experts over 'expert'.

    Args:
      batch: arrays [B, ...] or, stacked, [K, B, ...].
      mesh: mesh of `make_mesh`.
      stacked: whether every array has a leading expert axis.
    """
    experts = ("expert",) if stacked else ()
    found = {}
    for name, array in batch.items():
        rows = ("data",) if has_rows(name, array, stacked) else ()
        found[name] = _fitting(mesh, experts + rows, np.shape(array))
    return found


def has_rows(name: str, array: Any, stacked: bool = False) -> bool:
    """Whether the leading axis (after the experts') of a batch's entry is the row."""
    return name not in WITHOUT_ROWS and np.ndim(array) > stacked


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, where: Any, *, copy: bool = True) -> Any:
    """Brings host or device arrays to their shardings.

    In a job of several processes each holds the same values and places its part.

    Args:
      tree: pytree of arrays.
      where: pytree of shardings of the same structure, or one sharding for all.
      copy: whether the result may be donated without harm to `tree`.
    """
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, where, may_alias=not copy)

    def part(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i].copy())

    return jax.tree.map(part, tree, where)


def _fitting(mesh: Mesh, axes: Sequence[Any], shape: Sequence[int]) -> NamedSharding:
    """The sharding by `axes`, without those that do not divide their dimension."""
    kept = []
    for axis, size in zip(axes, shape, strict=False):
        names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
        ways = int(np.prod([mesh.shape[name] for name in names], initial=1))
        kept.append(axis if ways > 1 and size % ways == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*kept))
