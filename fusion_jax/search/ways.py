"""The programs of population evaluation: three ways to run a chunk of candidates.

Each takes (stack, shared, coefficients [P, G, K], groups of batches, carries of the
stages that are shared) and gives the readouts of every group of equal shapes,
[P, M, B, ...]. What they share is `merge_candidates`; where they differ is when a
merged leaf exists.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from fusion_jax import trees
from fusion_jax.search.points import Points
from fusion_jax.types import Batch, Model, Outputs, Params

Readout = Callable[[Outputs, Batch], dict[str, jax.Array]]
Program = Callable[..., list[dict[str, jax.Array]]]

_REUSE = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


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


def layers(
    model: Model, readout: Readout, points: Points, start: int, devices: int
) -> Program:
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
            rows = _after(coefficients, states)
            merged = merge_candidates(own_stack, rows, points.groups)

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

    return _compiled(chunk, devices)


def map_candidates(
    model: Model, readout: Readout, points: Points, start: int, devices: int
) -> Program:
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

    return _compiled(chunk, devices)


def loop(
    model: Model, readout: Readout, points: Points, start: int, devices: int
) -> Program:
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


def _after(coefficients: jax.Array, states: list[Any]) -> jax.Array:
    """The same coefficients, to be had only when the stage before is done.

    Nothing else makes a merge wait for its turn, and then all merged leaves would be
    held at once. An optimization barrier is gone before XLA orders the operations;
    adding a zero whose sign depends on the states is not, and changes no value.
    """
    floats = [
        x for x in jax.tree.leaves(states) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    for x in floats:
        unchanged = jnp.where(jnp.isinf(x.ravel()[0]), 0.0, -0.0)
        coefficients = coefficients + unchanged.astype(coefficients.dtype)
    return coefficients


def _compiled(chunk: Callable[..., Any], devices: int) -> Callable[..., Any]:
    """The chunk's program, scheduled so that a buffer is used again once it is free.

    XLA's default schedule for a CPU lets independent operations overlap: it merges all
    stages at once and keeps the activations of each, two to three times the memory and
    no faster, as every one of these operations occupies all cores.
    """
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(
        _over_devices(chunk, devices), compiler_options=_REUSE if on_cpu else None
    )


def _over_devices(chunk: Callable[..., Any], devices: int) -> Callable[..., Any]:
    """Splits the candidates of a chunk over an axis 'population' of devices."""
    if devices == 1:
        return chunk
    mesh = Mesh(
        np.asarray(jax.local_devices()[:devices]),
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


PROGRAMS: dict[str, Callable[..., Program]] = {
    "loop": loop,
    "map": map_candidates,
    "layers": layers,
}
"""Way -> (model, readout, points, first stage not shared, devices) -> program."""
