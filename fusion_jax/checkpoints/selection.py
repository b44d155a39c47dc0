"""The exact k-th largest of rows that come piece by piece, and never lie in memory.

A sample says between which two values the k-th largest very likely lies. One pass
counts what is above and keeps the few entries between; from these the exact threshold
follows. Where the sample misled, or the rows are so long that even few are many, two
passes count the entries by the upper and then by the lower half of their bits, and keep
none.
"""

from collections.abc import Callable, Iterable

import numpy as np

from fusion_jax.merging.form import Threshold

Pieces = Callable[[], Iterable[tuple[int, np.ndarray]]]
"""Gives (position of the first entry, values [R, n] float32) from the start, anew."""

_SPREAD = 6.0  # half width of the bracket, in standard errors of a sampled rank
_LONG = 2**28  # entries of a row from which none are kept
_HALF = 2**16


def select(
    pieces: Pieces, sample: np.ndarray, counts: np.ndarray, size: int
) -> Threshold:
    """The threshold that keeps exactly the `counts` largest entries of each row.

    Args:
      pieces: of the R rows, in any order of positions.
      sample: [R, m] entries of the rows, about evenly taken.
      counts: [R] of 0..size.
      size: entries of a row.

    Returns:
      `Threshold` of numpy arrays: value [R] float32, last [R] int64.
    """
    num_rows = len(sample)
    counts = np.broadcast_to(np.asarray(counts, np.int64), (num_rows,))
    value = np.where(counts <= 0, np.inf, -np.inf).astype(np.float32)
    last = np.full(num_rows, size, np.int64)
    open_rows = [r for r in range(num_rows) if 0 < counts[r] < size]
    ordered = np.sort(sample, axis=1)[:, ::-1]
    found: dict[int, tuple[np.float32, int, int]] = {}
    if open_rows and size <= _LONG:
        brackets = {r: _bracket(ordered[r], counts[r] / size) for r in open_rows}
        for r, bracket in _pass(pieces, brackets).items():
            answer = bracket.nth(int(counts[r]))
            if answer is not None:
                found[r] = answer
    missed = {r: int(counts[r]) for r in open_rows if r not in found}
    if missed:
        found |= _by_bits(pieces, missed)
    ties = {}
    for r, (limit, missing, there) in found.items():
        value[r] = limit
        if missing < there:
            ties[r] = (limit, missing)
    if ties:
        for r, position in _positions_of_ties(pieces, ties).items():
            last[r] = position
    return Threshold(value, last)  # type: ignore[arg-type]


class _Bracket:
    """Counts around an open interval (low, high), and the entries inside."""

    def __init__(self, low: np.float32, high: np.float32) -> None:
        self.low, self.high = low, high
        self.above = self.at_high = self.at_low = 0
        self.inside: list[np.ndarray] = []

    def add(self, row: np.ndarray) -> None:
        self.above += int(np.count_nonzero(row > self.high))
        self.at_high += int(np.count_nonzero(row == self.high))
        if self.low < self.high:
            self.at_low += int(np.count_nonzero(row == self.low))
            self.inside.append(row[(row > self.low) & (row < self.high)])

    def nth(self, n: int) -> tuple[np.float32, int, int] | None:
        """(the n-th largest, how many equal to it to keep, how many there are)."""
        rest = n - self.above
        if rest <= 0:
            return None
        if rest <= self.at_high:
            return self.high, rest, self.at_high
        rest -= self.at_high
        inside = np.concatenate([*self.inside, np.zeros(0, np.float32)])
        if rest <= len(inside):
            value = np.partition(inside, len(inside) - rest)[len(inside) - rest]
            more = int(np.count_nonzero(inside > value))
            return value, rest - more, int(np.count_nonzero(inside == value))
        rest -= len(inside)
        if self.low < self.high and rest <= self.at_low:
            return self.low, rest, self.at_low
        return None


def _bracket(descending: np.ndarray, share: float) -> _Bracket:
    """Two values of a sorted sample around the rank."""
    m = len(descending)
    slack = _SPREAD * np.sqrt(m * share * (1 - share)) + 2
    top, bottom = int(share * m - slack), int(share * m + slack) + 1
    high = descending[top] if top >= 0 else np.float32(np.inf)
    low = descending[bottom] if bottom < m else np.float32(-np.inf)
    return _Bracket(low, high)


def _pass(pieces: Pieces, brackets: dict[int, _Bracket]) -> dict[int, _Bracket]:
    for _, values in pieces():
        for r, bracket in brackets.items():
            bracket.add(values[r])
    return brackets


def _by_bits(
    pieces: Pieces, counts: dict[int, int]
) -> dict[int, tuple[np.float32, int, int]]:
    """`_Bracket.nth` of rows of values that are not negative, which holds no entry.

    The bits of such floats, read as integers, are in the order of the floats.
    """
    upper = {r: np.zeros(_HALF, np.int64) for r in counts}
    for _, values in pieces():
        for r, tally in upper.items():
            tally += np.bincount(_bits(values[r]) >> 16, minlength=_HALF)
    heads = {r: _place(upper[r], count) for r, count in counts.items()}
    lower = {r: np.zeros(_HALF, np.int64) for r in counts}
    for _, values in pieces():
        for r, tally in lower.items():
            bits = _bits(values[r])
            inside = bits[bits >> 16 == heads[r][0]] & (_HALF - 1)
            tally += np.bincount(inside, minlength=_HALF)
    found = {}
    for r, (head, rest) in heads.items():
        tail, missing = _place(lower[r], rest)
        value = np.uint32((head << 16) | tail).view(np.float32)
        found[r] = value, missing, int(lower[r][tail])
    return found


def _bits(row: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(row, np.float32) + np.float32(0)).view(np.uint32)


def _place(tally: np.ndarray, count: int) -> tuple[int, int]:
    """(bin that holds the count-th entry from the top, how many of it are wanted)."""
    from_top = np.cumsum(tally[::-1])
    place = int(np.searchsorted(from_top, count))
    before = int(from_top[place - 1]) if place else 0
    return _HALF - 1 - place, count - before


def _positions_of_ties(
    pieces: Pieces, ties: dict[int, tuple[np.float32, int]]
) -> dict[int, int]:
    """The position of the n-th entry equal to a value, for each row that asks."""
    found: dict[int, list[np.ndarray]] = {r: [] for r in ties}
    for start, values in pieces():
        for r, (value, _) in ties.items():
            hits = np.flatnonzero(values[r] == value)
            if len(hits):
                found[r].append(hits + start)
    return {
        r: int(np.partition(np.concatenate(found[r]), missing - 1)[missing - 1])
        for r, (_, missing) in ties.items()
    }
