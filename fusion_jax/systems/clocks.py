"""Seconds by two clocks: the wall's, and the processor's of this process.

Beside other work on one machine the wall's say little; on an accelerator the
processor's do.
"""

import time
from collections.abc import Mapping

CLOCKS = ("wall", "cpu")

Spent = dict[str, float | None]
"""Clock -> seconds; None where it was not read."""

UNKNOWN: Spent = dict.fromkeys(CLOCKS)
"""Of work that was found begun or done: how long it took was lost with its process."""


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        """Starts."""
        self._begun = time.perf_counter(), time.process_time()

    def spent(self, share: float = 1.0) -> Spent:
        """What has passed so far, or a share of it."""
        now = time.perf_counter(), time.process_time()
        return {
            clock: round(share * (end - start), 4)
            for clock, start, end in zip(CLOCKS, self._begun, now, strict=True)
        }


def rescaled(
    seconds: Mapping[str, float], whole: Mapping[str, float | None], clock: str
) -> dict[str, float]:
    """Parts of a whole, measured by the wall, as another clock would have them.

    Args:
      seconds: part -> seconds by the wall.
      whole: what all of it took by both clocks.
      clock: of `CLOCKS`.
    """
    factor = (whole[clock] or 0.0) / max(whole["wall"] or 0.0, 1e-9)
    return {name: value * factor for name, value in seconds.items()}
