"""Which epoch's parameters are kept, and when an expert stops: one record each."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Standing:
    """How an expert stands.

    Attributes:
      best: what the best epoch is compared by, larger is better; empty before one.
      best_epoch: its number, -1 before one.
      stale: epochs since then.
      stopped: whether it trains no more.
    """

    best: tuple[float, ...] = ()
    best_epoch: int = -1
    stale: int = 0
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return dataclasses.asdict(self) | {"best": list(self.best)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Standing":
        """The inverse of `to_json`."""
        return dataclasses.replace(cls(**record), best=tuple(record["best"]))


def observe(
    standing: Standing,
    epoch: int,
    score: float | None,
    loss: float | None,
    *,
    select: str,
    patience: int,
) -> tuple[Standing, bool]:
    """Takes in one epoch's dev result.

    By 'metric' the larger score wins, at equal scores the smaller loss; by 'loss' the
    smaller loss; by 'last', or without a dev set, each epoch replaces the one before.
    A tie in everything keeps the earlier epoch.

    Args:
      standing: before the epoch.
      epoch: its number.
      score: mean of the dev metrics, None without a dev set.
      loss: mean dev loss, None without a dev set.
      select: 'metric', 'loss' or 'last'.
      patience: epochs without a better one after which the expert stops; 0 = off.

    Returns:
      (standing, whether this epoch's parameters are the ones to keep).
    """
    if standing.stopped:
        return standing, False
    if select == "last" or score is None or loss is None:
        return dataclasses.replace(standing, best_epoch=epoch), True
    value = (score, -loss) if select == "metric" else (-loss,)
    value = tuple(-math.inf if math.isnan(x) else x for x in value)
    if value > standing.best:
        return Standing(best=value, best_epoch=epoch), True
    stale = standing.stale + 1
    stopped = bool(patience) and stale >= patience
    return dataclasses.replace(standing, stale=stale, stopped=stopped), False
