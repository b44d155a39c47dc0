"""Population evaluation: many interpolated models on one dev set, in one program.

A candidate is a row of coefficients. All ways of running return the same readouts:

- `loop`: merge one model, run it, take the next; the plain reference.
- `map`: the same inside one compiled program, `lax.map` over the candidates.
- `layers`: merge and forward pass advance together, stage by stage, for a whole chunk
  of candidates; no merged model ever exists, the stack is read once a chunk.

Memory is the points, plus one merged model (`loop`, `map`) or one stage for each
candidate of the chunk (`layers`), plus the activations of the chunk. Stages whose
leaves are all shared run once, whatever the number of candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.evaluation.readout import collect
from fusion_jax.search.plan import Plan, make_plan
from fusion_jax.search.points import Points
from fusion_jax.search.ways import PROGRAMS, Program, Readout
from fusion_jax.types import Batch, Model, Params

WAYS = ("auto", *PROGRAMS)


@dataclass(frozen=True)
class Population:
    """Evaluates candidates on one fixed set of batches, kept on the device.

    Attributes:
      points: what is interpolated.
      plan: how.
      num_rows: N, rows of the encoded split.
    """

    points: Points
    plan: Plan
    num_rows: int
    groups: tuple[Batch, ...]
    carries: tuple[Any, ...]
    program: Program

    def __call__(self, coefficients: np.ndarray | jax.Array) -> dict[str, np.ndarray]:
        """Readouts of P candidates.

        Args:
          coefficients: [P, K], or [P, G, K] with groups.

        Returns:
          What the readout gives, on the host: name -> [P, N, ...], rows in the order
          of the encoded split.

        Raises:
          ValueError: the shape does not fit the points.
        """
        rows = _rows(coefficients, self.points)
        count, chunk = len(rows), self.plan.chunk
        padded = np.concatenate([rows, np.repeat(rows[-1:], -count % chunk, axis=0)])
        # All calls are queued before the first result is fetched: the device does
        # not wait for the host.
        parts = [
            self.program(
                self.points.stack,
                self.points.shared,
                padded[i : i + chunk],
                self.groups,
                self.carries,
            )
            for i in range(0, len(padded), chunk)
        ]
        gathered = [self._gather(part) for part in jax.device_get(parts)]
        return {
            name: np.concatenate([part[name] for part in gathered])[:count]
            for name in gathered[0]
        }

    def _gather(self, groups: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """[c, M, B, ...] of every shape -> [c, N, ...] in the order of the rows."""
        pieces = [
            (
                np.asarray(group["index"]).reshape(-1),
                {name: x.reshape(len(x), -1, *x.shape[3:]) for name, x in kept.items()},
            )
            for group, kept in zip(self.groups, groups, strict=True)
        ]
        return collect(pieces, self.num_rows, leading=1)


def make_population(
    model: Model,
    readout: Readout,
    points: Points,
    batches: Sequence[Batch],
    *,
    way: str = "auto",
    chunk: int | None = None,
    devices: int = 1,
) -> Population:
    """Prepares the evaluation of candidates on a fixed set of batches.

    Args:
      model: pure functions; `model.stages` must compose to `model.apply`.
      readout: `(outputs, batch) -> dict of [B, ...]`, traced.
      points: the K points.
      batches: of one split; every row once, 'index' [B] its number, -1 for padding.
      way: of `WAYS`; 'auto' takes 'layers'.
      chunk: candidates in one call; by default as many as half of the device's free
        memory holds, one on a CPU, whose caches a second one only spills.
      devices: number of devices that share a chunk, over an axis 'population'.

    Returns:
      A callable population.

    Raises:
      ValueError: an unknown way, no batch, or more devices than there are.
    """
    if way not in WAYS:
        raise ValueError(f"way: '{way}' is not one of {', '.join(WAYS)}")
    if not batches:
        raise ValueError("batches: none given; the split is empty")
    if devices > jax.local_device_count():
        raise ValueError(
            f"devices: {devices} asked for, this process has "
            f"{jax.local_device_count()}; lower it"
        )
    way = "layers" if way == "auto" else way
    groups = group_by_shape(batches)
    stack, shared = jax.device_put((points.stack, points.shared))
    points = points._replace(stack=stack, shared=shared)
    # With the points in their place: what is free is free for the chunk.
    plan = make_plan(model, points, groups, way, chunk, devices)
    groups = jax.device_put(groups)
    start, carries = _run_shared_stages(model, points, groups, way)
    program = PROGRAMS[way](model, readout, points, start, devices)
    num_rows = 1 + max(int(np.max(group["index"])) for group in groups)
    return Population(points, plan, num_rows, groups, carries, program)


def group_by_shape(batches: Sequence[Batch]) -> tuple[Batch, ...]:
    """Batches of equal shapes, stacked: leaves [M, B, ...] for each shape.

    Leaves without an example axis, such as 'label_mask' [C], gain the axis too.
    """
    by_shape: dict[tuple[Any, ...], list[Batch]] = {}
    for batch in batches:
        shape = tuple(sorted((name, np.shape(x)) for name, x in batch.items()))
        by_shape.setdefault(shape, []).append(batch)
    return tuple(
        {name: np.stack([np.asarray(b[name]) for b in same]) for name in same[0]}
        for same in by_shape.values()
    )


def compiled_memory(population: Population) -> dict[str, int]:
    """What XLA says that the program of one chunk takes, in bytes.

    Returns:
      'arguments' (points, batches), 'temporaries', 'outputs'.

    Raises:
      ValueError: the way is 'loop', which is not one program.
    """
    if population.plan.way == "loop":
        raise ValueError("way 'loop' is not one program; take 'map' or 'layers'")
    shape = (
        population.plan.chunk,
        population.points.num_groups,
        len(population.points.names),
    )
    program: Any = population.program
    analysis = (
        program.lower(
            population.points.stack,
            population.points.shared,
            jax.ShapeDtypeStruct(shape, jnp.float32),
            population.groups,
            population.carries,
        )
        .compile()
        .memory_analysis()
    )
    return {
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
    }


def _rows(coefficients: np.ndarray | jax.Array, points: Points) -> np.ndarray:
    rows = np.asarray(coefficients, np.float32)
    if rows.ndim == 2:
        rows = np.repeat(rows[:, None], points.num_groups, axis=1)
    expected = (points.num_groups, len(points.names))
    if rows.ndim != 3 or rows.shape[1:] != expected or not len(rows):
        raise ValueError(
            f"coefficients of shape {np.shape(coefficients)}: expected [P, "
            f"{expected[1]}] or [P, {expected[0]}, {expected[1]}] for the points "
            f"{', '.join(points.names)}"
        )
    return rows


def _run_shared_stages(
    model: Model, points: Points, groups: tuple[Batch, ...], way: str
) -> tuple[int, tuple[Any, ...]]:
    """Runs the first stages that no candidate changes, once for all candidates."""
    start = 0
    while start < len(model.stages) - 1 and not trees.flatten(
        trees.partition(points.stack, model.stages[start].owns)[0]
    ):
        start += 1
    if way == "loop" or not start:
        return 0, tuple(None for _ in groups)

    @jax.jit
    def prefix(shared: Params, group: Batch) -> Any:
        def run(batch: Batch) -> Any:
            carry = None
            for stage in model.stages[:start]:
                owned = trees.partition(shared, stage.owns)[0]
                carry = stage.apply(owned, carry, batch)
            return carry

        return jax.lax.map(run, group)

    return start, tuple(prefix(points.shared, group) for group in groups)
