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

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from fusion_jax import trees
from fusion_jax.evaluation.readout import collect
from fusion_jax.search.points import Points
from fusion_jax.types import Batch, Model, Outputs, Params

WAYS = ("auto", "loop", "map", "layers")
Readout = Callable[[Outputs, Batch], dict[str, jax.Array]]
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
    program: Callable[..., list[dict[str, jax.Array]]]

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
    if devices > jax.device_count():
        raise ValueError(
            f"devices: {devices} asked for, {jax.device_count()} there; lower it"
        )
    way = "layers" if way == "auto" else way
    groups = group_by_shape(batches)
    plan = _plan(model, points, groups, way, chunk, devices)
    stack, shared = jax.device_put((points.stack, points.shared))
    points = points._replace(stack=stack, shared=shared)
    groups = jax.device_put(groups)
    start, carries = _run_shared_stages(model, points, groups, way)
    build = {"loop": _loop, "map": _map, "layers": _layers}[way]
    program = build(model, readout, points, start, devices)
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


def merge_candidates(
    stack: Params, coefficients: jax.Array, groups: trees.Rules[int]
) -> Params:
    """theta_p = sum_k c_pk theta_k for a chunk of candidates.

    Args:
      stack: tree of [K, ...].
      coefficients: [P, G, K] float32.
      groups: ordered (regular expression, group) rules.

    Returns:
      Tree of [P, ...], summed in float32, dtypes of the stack.
    """
    index = trees.match_rules(groups, trees.flatten(stack), what="groups")

    def merge(name: str, experts: jax.Array) -> jax.Array:
        if not jnp.issubdtype(experts.dtype, jnp.floating):
            return jnp.repeat(experts[:1], len(coefficients), axis=0)
        rows = coefficients[:, index[name]]
        # A sum of K scaled reads, which XLA fuses into one pass over the stack; the
        # equal einsum is a matrix product with a side of K and slower on a CPU.
        total = sum(
            rows[:, k].reshape(-1, *[1] * (experts.ndim - 1))
            * experts[k].astype(jnp.float32)[None]
            for k in range(len(experts))
        )
        return jnp.asarray(total).astype(experts.dtype)

    return trees.map_with_names(merge, stack)


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


def _layers(
    model: Model, readout: Readout, points: Points, start: int, devices: int
) -> Callable[..., Any]:
    """Stage by stage: merge one stage for the chunk, advance all its activations."""

    def chunk(stack, shared, coefficients, groups, carries):
        states = list(carries)
        # A batched matrix product of one candidate is not compiled to a plain one, and
        # then leaves a CPU's second core idle: a chunk of one drops its axis.
        alone = len(coefficients) == 1
        batched = False
        for stage in model.stages[start:]:
            own_stack = trees.partition(stack, stage.owns)[0]
            own_shared = trees.partition(shared, stage.owns)[0]
            # Nothing else makes a merge wait for the stage before it, and then all
            # merged leaves would be held at once.
            coefficients, states = jax.lax.optimization_barrier((coefficients, states))
            merged = merge_candidates(own_stack, coefficients, points.groups)

            def advance(params, state, batch, stage=stage, own_shared=own_shared):
                return stage.apply(trees.combine(params, own_shared), state, batch)

            if alone:
                over, merged = advance, jax.tree.map(lambda x: x[0], merged)
            else:
                over = jax.vmap(advance, in_axes=(0, 0 if batched else None, None))
            states = [
                _map_pairs(functools.partial(over, merged), state, group)
                for state, group in zip(states, groups, strict=True)
            ]
            batched = True
        read = readout if alone else jax.vmap(readout, in_axes=(0, None))
        readouts = [
            _map_pairs(read, state, group)
            for state, group in zip(states, groups, strict=True)
        ]
        if alone:
            return jax.tree.map(lambda x: x[None], readouts)
        return [_candidates_first(kept) for kept in readouts]

    return jax.jit(_over_devices(chunk, devices))


def _map(
    model: Model, readout: Readout, points: Points, start: int, devices: int
) -> Callable[..., Any]:
    """One candidate after another in one program, each merged as a whole."""

    def chunk(stack, shared, coefficients, groups, carries):
        def one(row):
            merged = jax.tree.map(
                lambda x: x[0], merge_candidates(stack, row[None], points.groups)
            )
            params = trees.combine(merged, shared)

            def run(pair):
                state, batch = pair
                for stage in model.stages[start:]:
                    owned = trees.partition(params, stage.owns)[0]
                    state = stage.apply(owned, state, batch)
                return readout(state, batch)

            return [
                jax.lax.map(run, (state, group))
                for state, group in zip(carries, groups, strict=True)
            ]

        return jax.lax.map(one, coefficients)

    return jax.jit(_over_devices(chunk, devices))


def _loop(
    model: Model, readout: Readout, points: Points, start: int, devices: int
) -> Callable[..., Any]:
    """The plain way: merge, apply, next; two small programs and a Python loop."""
    del start, devices
    merge = jax.jit(
        lambda stack, row: jax.tree.map(
            lambda x: x[0], merge_candidates(stack, row[None], points.groups)
        )
    )
    forward = jax.jit(
        lambda merged, shared, batch: readout(
            model.apply(trees.combine(merged, shared), batch), batch
        )
    )

    def chunk(stack, shared, coefficients, groups, carries):
        del carries
        results = []
        for row in coefficients:
            merged = merge(stack, row)
            results.append(
                [
                    _stack_batches(
                        [
                            forward(merged, shared, {k: v[m] for k, v in group.items()})
                            for m in range(len(group["index"]))
                        ]
                    )
                    for group in groups
                ]
            )
        return [_stack_batches([r[g] for r in results]) for g in range(len(groups))]

    return chunk


def _over_devices(chunk: Callable[..., Any], devices: int) -> Callable[..., Any]:
    """Splits the candidates of a chunk over an axis 'population' of devices."""
    if devices == 1:
        return chunk
    mesh = Mesh(
        np.asarray(jax.devices()[:devices]),
        ("population",),
        axis_types=(AxisType.Auto,),
    )
    whole, split = PartitionSpec(), PartitionSpec("population")
    return jax.shard_map(
        chunk,
        mesh=mesh,
        in_specs=(whole, whole, split, whole, whole),
        out_specs=split,
        check_vma=False,
    )


def _map_pairs(function: Callable[..., Any], state: Any, group: Batch) -> Any:
    """`function(state, batch)` over the batches of one shape, one at a time."""
    return jax.lax.map(lambda pair: function(*pair), (state, group))


def _candidates_first(readouts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.swapaxes(x, 0, 1) for name, x in readouts.items()}


def _stack_batches(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return jax.tree.map(lambda *x: jnp.stack(x), *parts)


def _plan(
    model: Model,
    points: Points,
    groups: tuple[Batch, ...],
    way: str,
    chunk: int | None,
    devices: int,
) -> Plan:
    """Chooses the chunk, from sizes alone: nothing is computed here."""
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
        chunk = 1 if way != "layers" else _fitting(each, held)
    chunk = -(-chunk // devices) * devices
    at_once = chunk if way == "layers" else devices
    return Plan(way, chunk, devices, held, at_once * each)


def _fitting(each: int, held: int) -> int:
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 1
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 16 * 2**30) - stats.get("bytes_in_use", 0) - held
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
