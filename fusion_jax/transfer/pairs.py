"""A measure of all ordered pairs of tasks in one compiled call."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.transfer.measure import Measure
from fusion_jax.transfer.table import MEASURES

CHUNK = 8
"""Pairs that an accelerator works on at once: memory is theirs, not of all pairs."""


def all_pairs(
    name: str,
    tasks: Any,
    *,
    options: Mapping[str, Any] | None = None,
    chunk: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Row s, column t: how far source s is from target t.

    Args:
      name: of `MEASURES`.
      tasks: what the measure reads, of all N tasks: leaves [N, ...].
      options: of the measure (gamma, directions, alpha), one for all pairs.
      chunk: pairs at once; None = 1 on a CPU, where a product of two matrices is faster
        than eight of them side by side, else `CHUNK`.
      sharding: of the axis of pairs, to spread them over devices; None for one.
      names: of the tasks, for messages; None = their numbers.

    Returns:
      [N, N] float64, symmetric to the bit where the measure is. Computed in float64.

    Raises:
      ValueError: an unknown measure, or a value that is not finite: it names the
        pairs, since a gap must never be read as 'identical'.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown measure '{name}'; there are {', '.join(MEASURES)}")
    measure = MEASURES[name]
    if chunk is None:
        chunk = 1 if jax.default_backend() == "cpu" else CHUNK
    count = len(jax.tree.leaves(tasks)[0])
    sources, targets = np.triu_indices(count)
    if not measure.symmetric:
        sources, targets = np.indices((count, count)).reshape(2, -1)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), tasks)
        given = {k: np.asarray(v, np.float64) for k, v in (options or {}).items()}
        places = np.stack([sources, targets], axis=1).astype(np.int32)
        devices = 1 if sharding is None else sharding.num_devices
        padded = np.resize(places, (-(-len(places) // devices) * devices, 2))
        given_places = jnp.asarray(padded)
        if sharding is not None:
            given_places = jax.device_put(given_places, sharding)
        run = _program(measure, chunk)
        found = np.asarray(run(wide, given_places, given))[: len(places)]
    table = np.empty((count, count))
    table[sources, targets] = found
    if measure.symmetric:
        table[targets, sources] = found
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        called = range(count) if names is None else names
        told = ", ".join(f"{called[s]} and {called[t]}" for s, t in bad[:8])
        raise ValueError(
            f"{name}: not finite for {len(bad)} of {table.size} pairs of tasks "
            f"({told}); look at what represents them, and leave those tasks out"
        )
    return table


@functools.lru_cache(maxsize=64)
def _program(measure: Measure, chunk: int) -> Any:
    """(tasks [N, ...], places [M, 2], options) -> [M]."""

    @jax.jit
    def run(tasks: Any, places: jax.Array, options: dict[str, jax.Array]) -> jax.Array:
        if measure.prepare is not None:
            prepare = functools.partial(measure.prepare, **options)
            tasks = jax.lax.map(prepare, tasks)

        def one(place: jax.Array) -> jax.Array:
            source, target = (
                jax.tree.map(lambda x, i=i: x[place[i]], tasks) for i in (0, 1)
            )
            return measure.function(source, target, **options)

        return jax.lax.map(one, places, batch_size=chunk if chunk > 1 else None)

    return run
