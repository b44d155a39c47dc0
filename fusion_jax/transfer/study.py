"""Every measure of every pair of tasks, with what each took."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fusion_jax.transfer.pairs import all_measures
from fusion_jax.transfer.represent import Represented
from fusion_jax.transfer.sample_divergences import median_bandwidth
from fusion_jax.transfer.table import MEASURES
from fusion_jax.transfer.transport import unit_directions


class Study(NamedTuple):
    """Distances of all ordered pairs.

    Attributes:
      distances: measure -> [N, N] float64: row s, column t, source s for target t.
      seconds: measure -> seconds for all pairs, compiling included; of measures of one
        program, its seconds in equal parts.
      shared_seconds: for what measures have in common: the bandwidth.
    """

    distances: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    shared_seconds: float


def measures_of(represented: Represented) -> tuple[str, ...]:
    """Measures whose reads are there."""
    return tuple(
        name for name, measure in MEASURES.items() if measure.reads in represented.reads
    )


def measure_all(
    represented: Represented,
    measures: Iterable[str] | None = None,
    *,
    seed: int = 0,
    apart: bool = False,
    chunk: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Study:
    """Measures all pairs, each measure with the options of one study.

    Measures that read the same are one program, which shares what they have in common.

    Args:
      represented: of `represent`.
      measures: names of `MEASURES`; None = all whose reads are there.
      seed: of random directions and of the pool for the bandwidth.
      apart: a program for each measure, so that `seconds` are its own.
      chunk: as in `all_measures`.
      sharding: as in `all_measures`.

    Returns:
      The study.

    Raises:
      ValueError: unknown measures, or measures that read what is not represented, all
        of them named; or a distance is not finite: it names the tasks.
    """
    chosen = measures_of(represented) if measures is None else tuple(measures)
    _check(chosen, represented)
    begun = time.perf_counter()
    options = study_options(chosen, represented, seed)
    shared = time.perf_counter() - begun
    distances, seconds = {}, {}
    for group in [[name] for name in chosen] if apart else groups_of(chosen):
        begun = time.perf_counter()
        distances |= all_measures(
            group,
            represented.reads[MEASURES[group[0]].reads],
            options=options,
            chunk=chunk,
            sharding=sharding,
            called=represented.names,
        )
        taken = time.perf_counter() - begun
        seconds |= dict.fromkeys(group, taken / len(group))
    return Study({name: distances[name] for name in chosen}, seconds, shared)


def groups_of(measures: Iterable[str]) -> list[list[str]]:
    """Measures that one program takes: they read the same, and are symmetric or not."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in measures:
        record = MEASURES[name]
        groups.setdefault((record.reads, record.symmetric), []).append(name)
    return list(groups.values())


def study_options(
    measures: Iterable[str], represented: Represented, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Options that are one for all pairs: bandwidth, epsilon, directions."""
    chosen = set(measures)
    found: dict[str, dict[str, Any]] = {}
    if chosen & {"mmd", "sinkhorn"}:
        gamma = median_bandwidth(represented.reads["sample"], seed=seed)
        found["mmd"] = {"gamma": gamma}
        # A tenth of the squared median distance, 1 / (2 gamma).
        found["sinkhorn"] = {"epsilon": 0.1 / (2 * gamma)}
    if "sliced_wasserstein" in chosen:
        width = np.shape(represented.reads["sample"])[-1]
        directions = unit_directions(width, seed=seed)
        found["sliced_wasserstein"] = {"directions": directions}
    return {name: options for name, options in found.items() if name in chosen}


def _check(chosen: tuple[str, ...], represented: Represented) -> None:
    unknown = [name for name in chosen if name not in MEASURES]
    unread = [
        f"{name} reads '{MEASURES[name].reads}'"
        for name in chosen
        if name in MEASURES and MEASURES[name].reads not in represented.reads
    ]
    faults = []
    if unknown:
        faults.append(f"unknown {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    if unread:
        faults.append(
            f"{', '.join(unread)}, but the tasks are represented by "
            f"{', '.join(represented.reads)}; give an encoder, or leave them out"
        )
    if faults:
        raise ValueError(f"measures: {'; '.join(faults)}")
