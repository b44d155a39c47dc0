"""Measures of all ordered pairs of tasks in one compiled call."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.transfer.measure import Known, Measure
from fusion_jax.transfer.table import MEASURES

CHUNK = 8
"""Pairs that an accelerator works on at once: memory is theirs, not of all pairs."""


def all_pairs(
    name: str,
    tasks: Any,
    *,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> np.ndarray:
    """One measure: `all_measures` of it alone.

    Args:
      name: of `MEASURES`.
      tasks: what the measure reads, of all N tasks: leaves [N, ...].
      options: of the measure (gamma, directions, alpha), one for all pairs.
      **more: chunk, sharding and called, as there.

    Returns:
      [N, N] float64: row s, column t, how far source s is from target t.

    Raises:
      ValueError: as there.
    """
    return all_measures([name], tasks, options={name: options or {}}, **more)[name]


def all_measures(
    names: Sequence[str],
    tasks: Any,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    chunk: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    called: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Measures that read the same, of all pairs, by one program.

    What measures have in common, such as the distances of two samples or the root of a
    pooled covariance, is computed once a pair.

    Args:
      names: of `MEASURES`, all symmetric or none.
      tasks: what they read, of all N tasks: leaves [N, ...].
      options: measure -> its options (gamma, directions, alpha), one for all pairs.
      chunk: pairs at once; None = 1 on a CPU, where a product of two matrices is faster
        than eight of them side by side, else `CHUNK`.
      sharding: of the axis of pairs, to spread them over devices; None for one.
      called: the tasks' names, for messages; None = their numbers.

    Returns:
      Measure -> [N, N] float64: row s, column t, how far source s is from target t;
      symmetric to the bit where the measure is. Computed in float64.

    Raises:
      ValueError: an unknown measure, measures of which some are symmetric or that read
        different things, or a value that is not finite: it names the pairs, since a
        gap must never be read as 'identical'.
    """
    measures, told = _alike(names), options or {}
    if chunk is None:
        chunk = 1 if jax.default_backend() == "cpu" else CHUNK
    count = len(jax.tree.leaves(tasks)[0])
    symmetric = measures[0].symmetric
    sources, targets = np.triu_indices(count)
    if not symmetric:
        sources, targets = np.indices((count, count)).reshape(2, -1)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), tasks)
        given = [
            {k: np.asarray(v, np.float64) for k, v in told.get(name, {}).items()}
            for name in names
        ]
        places = np.stack([sources, targets], axis=1).astype(np.int32)
        devices = 1 if sharding is None else sharding.num_devices
        padded = np.resize(places, (-(-len(places) // devices) * devices, 2))
        given_places = jnp.asarray(padded)
        if sharding is not None:
            given_places = jax.device_put(given_places, sharding)
        run = _program(measures, chunk)
        found = np.asarray(run(wide, given_places, given))[: len(places)]
    tables = {}
    for name, column in zip(names, found.T, strict=True):
        table = np.empty((count, count))
        table[sources, targets] = column
        if symmetric:
            table[targets, sources] = column
        tables[name] = table
    _check_finite(tables, range(count) if called is None else called)
    return tables


def _alike(names: Sequence[str]) -> tuple[Measure, ...]:
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names:
        raise ValueError(
            f"unknown measure {', '.join(map(repr, unknown)) or '(none)'}; there are "
            f"{', '.join(MEASURES)}"
        )
    measures = tuple(MEASURES[name] for name in names)
    kinds = {(measure.reads, measure.symmetric) for measure in measures}
    if len(kinds) > 1:
        raise ValueError(
            f"measures {', '.join(names)}: one program takes those that read the same "
            "and are all symmetric, or none; call it for each kind"
        )
    return measures


def _check_finite(tables: Mapping[str, np.ndarray], called: Sequence[Any]) -> None:
    wrong = []
    for name, table in tables.items():
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            told = ", ".join(f"{called[s]} and {called[t]}" for s, t in bad[:8])
            wrong.append(
                f"{name}: not finite for {len(bad)} of {table.size} pairs of tasks "
                f"({told})"
            )
    if wrong:
        raise ValueError(
            "; ".join(wrong)
            + "; look at what represents them, and leave those tasks out"
        )


@functools.lru_cache(maxsize=64)
def _program(measures: tuple[Measure, ...], chunk: int) -> Any:
    """(tasks [N, ...], places [M, 2], options of each) -> [M, measures]."""

    @jax.jit
    def run(
        tasks: Any, places: jax.Array, options: list[dict[str, jax.Array]]
    ) -> jax.Array:
        owns = [
            None
            if measure.prepare is None
            else jax.lax.map(functools.partial(measure.prepare, **given), tasks)
            for measure, given in zip(measures, options, strict=True)
        ]

        def one(place: jax.Array) -> jax.Array:
            def at(tree: Any, side: int) -> Any:
                return jax.tree.map(lambda x: x[place[side]], tree)

            pair = at(tasks, 0), at(tasks, 1)
            values = []
            for measure, own, given in zip(measures, owns, options, strict=True):
                sides = pair
                if own is not None:
                    sides = [Known(task, at(own, k)) for k, task in enumerate(pair)]
                values.append(measure.function(*sides, **given))
            return jnp.stack(values)

        return jax.lax.map(one, places, batch_size=chunk if chunk > 1 else None)

    return run
