"""How a population is evaluated: the way, the chunk, and what it takes."""

from typing import NamedTuple

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.search.points import Points
from fusion_jax.types import Batch, Model

_MEMORY_SHARE = 0.5  # of what the device has free, for a chunk of candidates


class Plan(NamedTuple):
    """How a population is evaluated.

    Attributes:
      way: of `WAYS`.
      chunk: candidates in one call of the program.
      devices: over which the chunk is split.
      bytes_points: of the points, held throughout.
      bytes_chunk: estimate of merged leaves and activations of one chunk.
    """

    way: str
    chunk: int
    devices: int
    bytes_points: int
    bytes_chunk: int

    def __str__(self) -> str:
        """One line for a log."""
        return (
            f"{self.way}, {self.chunk} candidates at once on {self.devices} device(s): "
            f"points {self.bytes_points / 2**20:.0f} MiB + chunk "
            f"{self.bytes_chunk / 2**20:.0f} MiB"
        )


def make_plan(
    model: Model,
    points: Points,
    groups: tuple[Batch, ...],
    way: str,
    chunk: int | None,
    devices: int,
) -> Plan:
    """Chooses the chunk, from sizes alone: nothing is computed here.

    Args:
      model: of the candidates.
      points: in their place on the device.
      groups: batches of equal shapes, [M, B, ...].
      way: 'loop', 'map' or 'layers'.
      chunk: candidates in one call; None = what the device's free memory holds.
      devices: over which a chunk is split; the chunk is rounded up to them.
    """
    one = jax.eval_shape(lambda s: jax.tree.map(lambda x: x[0], s), points.stack)
    if way == "layers":
        # The merged leaves of the largest stage, and the activations of every row
        # twice (before and after the stage) with the widest batch's inner ones.
        stages = [
            trees.num_bytes(trees.partition(one, s.owns)[0]) for s in model.stages
        ]
        merged = max(stages)
    else:
        merged = trees.num_bytes(one)
    activations = _activation_bytes(model, points, groups, all_rows=way == "layers")
    each = merged + activations
    held = trees.num_bytes(points.stack) + trees.num_bytes(points.shared)
    if chunk is None:
        chunk = 1 if way != "layers" else _fitting(each)
    chunk = -(-chunk // devices) * devices
    at_once = chunk if way == "layers" else devices
    return Plan(way, chunk, devices, held, at_once * each)


def _fitting(each: int) -> int:
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 1
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 16 * 2**30) - stats.get("bytes_in_use", 0)
    return int(np.clip(_MEMORY_SHARE * free // each, 1, 64))


def _activation_bytes(
    model: Model, points: Points, groups: tuple[Batch, ...], *, all_rows: bool
) -> int:
    """Bytes of the carries of one candidate, counted by abstract evaluation."""
    params = jax.eval_shape(
        lambda s, c: trees.combine(jax.tree.map(lambda x: x[0], s), c),
        points.stack,
        points.shared,
    )
    sizes = []
    for group in groups:
        batch = {
            k: jax.ShapeDtypeStruct(np.shape(v)[1:], np.asarray(v).dtype)
            for k, v in group.items()
        }
        carry, largest = None, 0
        for stage in model.stages[:-1]:
            owned = trees.partition(params, stage.owns)[0]
            carry = jax.eval_shape(stage.apply, owned, carry, batch)
            largest = max(
                largest,
                sum(
                    int(np.prod(x.shape)) * x.dtype.itemsize
                    for x in jax.tree.leaves(carry)
                ),
            )
        count = len(group["index"]) if all_rows else 1
        # Inside a stage the widest intermediate is about four times the carry.
        sizes.append(2 * largest * count + 4 * largest)
    return sum(sizes) if all_rows else max(sizes, default=0)
