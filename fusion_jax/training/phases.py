"""The phases of a fit: the head alone, then everything that is not frozen."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from fusion_jax.training.config import FitConfig
from fusion_jax.trees import combine, flatten, partition
from fusion_jax.types import ParamStack

HEAD = r"head/.*"


class Phase(NamedTuple):
    """A run of epochs with one set of trained leaves and one schedule.

    Attributes:
      name: 'head' or 'full'.
      first, last: its epochs, last exclusive, counted over the whole fit.
      trained: regular expression of the leaves of the stack that it trains.
      config: with the learning rate and schedule of the phase.
      chooses: whether its epochs may be the ones whose parameters are returned.
    """

    name: str
    first: int
    last: int
    trained: str
    config: FitConfig
    chooses: bool


def phases(config: FitConfig) -> tuple[Phase, ...]:
    """The phases that a config asks for, in order."""
    found = []
    if config.head_epochs:
        rate = dataclasses.replace(
            config,
            learning_rate=config.head_learning_rate,
            schedule="constant",
            warmup_fraction=0.0,
        )
        alone = config.epochs == 0
        found.append(Phase("head", 0, config.head_epochs, HEAD, rate, alone))
    if config.epochs:
        last = config.head_epochs + config.epochs
        found.append(Phase("full", config.head_epochs, last, ".*", config, True))
    return tuple(found)


def split(
    stack: ParamStack, phase: Phase, frozen: Sequence[str]
) -> tuple[ParamStack, ParamStack]:
    """(trained, held) leaves of a stack in a phase.

    Raises:
      ValueError: no leaf is trained.
    """
    wanted, others = partition(stack, phase.trained)
    fixed, trained = partition(wanted, frozen)
    if not trained:
        names = ", ".join(list(flatten(stack))[:6]) or "none"
        raise ValueError(
            f"nothing to train in phase {phase.name!r}: no leaf matches "
            f"{phase.trained!r} without matching FitConfig.frozen (the first leaves: "
            f"{names}); change frozen or head_epochs"
        )
    return trained, combine(others, fixed)
