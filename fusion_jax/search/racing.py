"""Racing: a candidate that is clearly worse on part of dev is not finished."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Readouts = dict[str, np.ndarray]


class Race(NamedTuple):
    """Fitness of a population, and what it cost.

    Attributes:
      fitness: [P] float64; finished candidates keep their true fitness, dropped ones
        rank behind all of them, in the order of what is known of them.
      finished: [P] bool.
      rows: rows evaluated, over all candidates.
    """

    fitness: np.ndarray
    finished: np.ndarray
    rows: int


def split_rows(
    num_rows: int, shares: Sequence[float] = (0.25, 0.25, 0.5), *, seed: int = 0
) -> list[np.ndarray]:
    """Row numbers of the heats, drawn at random, sorted within each."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(num_rows)
    ends = np.round(np.cumsum(shares) / np.sum(shares) * num_rows).astype(int)
    heats = np.split(order, ends[:-1])
    return [np.sort(heat) for heat in heats if len(heat)]


def race(
    coefficients: np.ndarray,
    heats: Sequence[tuple[np.ndarray, Callable[[np.ndarray], Readouts]]],
    fitness: Callable[[Readouts], np.ndarray],
    *,
    margin: float = 2.0,
) -> Race:
    """Evaluates heat by heat and drops who is clearly behind the leader.

    After each heat but the last, candidate p is dropped when its mean loss, each at
    its own best temperature, exceeds the smallest by more than `margin` standard
    errors of the paired difference on the rows seen so far.

    Args:
      coefficients: [P, ...].
      heats: (row numbers, evaluator of those rows) of each part of dev; together all
        rows, each once.
      fitness: `readouts [P', N, ...] -> [P']`, lower is better.
      margin: standard errors; infinity drops nobody.

    Returns:
      The race.
    """
    count = len(coefficients)
    alive = np.arange(count)
    reached, known = np.zeros(count), np.zeros(count)
    seen: list[Readouts] = []
    rows = 0
    for number, (_, evaluate) in enumerate(heats):
        readouts = evaluate(coefficients[alive])
        rows += readouts["loss"].size
        seen.append(readouts)
        table = _losses(seen)
        mean = table.mean(axis=1)
        reached[alive], known[alive] = number, mean
        if number == len(heats) - 1:
            break
        difference = table - table[np.argmin(mean)]
        error = _standard_error(difference)
        # A comparison with NaN (a heat of one row has no error) is false: who is not
        # clearly behind stays.
        with np.errstate(invalid="ignore"):
            keep = ~(difference.mean(axis=1) > margin * error)
        alive = alive[keep]
        seen = [{name: x[keep] for name, x in part.items()} for part in seen]
    result = np.full(count, np.inf)
    result[alive] = fitness(_join(seen, np.concatenate([r for r, _ in heats])))
    finished = np.zeros(count, bool)
    finished[alive] = True
    # The further a candidate came and the less it lost, the better it ranks: behind
    # every finished one, one step of floating point after another.
    place = np.max(result[alive])
    for p in sorted(np.flatnonzero(~finished), key=lambda p: (-reached[p], known[p])):
        place = np.nextafter(place, np.inf)
        result[p] = place
    return Race(result, finished, rows)


def _standard_error(values: np.ndarray) -> np.ndarray:
    """[P'] of the mean over the rows; NaN where a single row tells nothing of it."""
    if values.shape[1] < 2:
        return np.full(len(values), np.nan)
    return values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])


def _losses(parts: Sequence[Readouts]) -> np.ndarray:
    """[P', rows so far]: losses at the temperature that suits each candidate best.

    Plain cross-entropy would drop the overconfident rather than the worse.
    """
    tempered = np.concatenate([part["tempered"] for part in parts], axis=1)
    tempered = np.where(np.isfinite(tempered), tempered, np.float32(1e30))
    best = tempered.mean(axis=1).argmin(axis=1)
    return np.take_along_axis(tempered, best[:, None, None], axis=2)[..., 0].astype(
        np.float64
    )


def _join(parts: Sequence[Readouts], rows: np.ndarray) -> Readouts:
    """Heats side by side, in the order of the split's rows: [P', N, ...]."""
    order = np.argsort(rows)
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        widths = np.max([value.shape[2:] for value in values], axis=0).astype(int)
        padded = [
            np.pad(
                value,
                [(0, 0), (0, 0)]
                + [
                    (0, int(w - n))
                    for w, n in zip(widths, value.shape[2:], strict=True)
                ],
                constant_values=-1,
            )
            for value in values
        ]
        joined[name] = np.concatenate(padded, axis=1)[:, order]
    return joined
