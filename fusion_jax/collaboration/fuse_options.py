"""How contributions become the next base, as options that a manifest can hold."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion_jax.checkpoints.direct_plan import LINEAR, check_options
from fusion_jax.merging import MERGES

MEAN, NONE = "mean", "none"

MOST_ADAM = 0.1
"""Largest server rate of adam, whose steps are about that long in every weight."""

OPTIMIZERS: Mapping[str, Mapping[str, float]] = {
    NONE: {},
    "momentum": {"momentum": 0.9},
    "adam": {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
}
"""Server optimizer -> its options with their defaults, those of the papers."""


@dataclass(frozen=True)
class FuseOptions:
    """What decides the weights of the next base, beside the contributions.

    Attributes:
      method: 'mean', or a name of `MERGES` (or 'linear').
      options: of the method, by the names of its function; lists are one value for
        each contribution in the order of their hashes.
      server_rate: alpha; the share of the way from the base to what the method gives.
        1 is the paper; less is advised with few contributors; Adam wants about the
        size of the steps, 1e-3 or less.
      optimizer: of `OPTIMIZERS`: 'none', 'momentum' (FedAvgM), 'adam' (FedAdam).
      optimizer_options: of the optimizer, where they differ from its defaults.
      discount: a contribution that is s rounds old votes with 1 / (1 + discount s).
      clip: a contribution whose way from its own base is longer than clip times the
        median of all is shortened to that; 0 shortens none.
      seed: of methods that draw random masks.
    """

    method: str = MEAN
    options: Mapping[str, Any] = field(default_factory=dict)
    server_rate: float = 1.0
    optimizer: str = NONE
    optimizer_options: Mapping[str, float] = field(default_factory=dict)
    discount: float = 0.25
    clip: float = 0.0
    seed: int = 0

    @property
    def optimizer_values(self) -> dict[str, float]:
        """All options of the optimizer, defaults filled in."""
        return {**OPTIMIZERS[self.optimizer], **self.optimizer_options}

    @property
    def needs_statistics(self) -> bool:
        """Whether every contribution must have a file of statistics."""
        return self.method in MERGES and "statistics" in MERGES[self.method].needs


def check(options: FuseOptions) -> None:
    """Refuses options before anything is downloaded.

    What depends on the number of contributions is told by the merge itself.

    Raises:
      ValueError: everything that is wrong, with the nearest names that there are.
    """
    faults = [*_method_faults(options), *_optimizer_faults(options)]
    for name, least in (("server_rate", None), ("discount", 0), ("clip", 0)):
        value = getattr(options, name)
        if not _is_number(value) or (value <= 0 if least is None else value < least):
            faults.append(
                f"{name}: {value!r} is no finite number "
                + ("greater than 0" if least is None else "from 0 on")
            )
    if options.optimizer == "adam" and _is_number(options.server_rate):
        if options.server_rate > MOST_ADAM:
            faults.append(
                f"server_rate: {options.server_rate:g} with adam moves every weight by "
                f"about so much; give the size of a step, such as 0.001 (at most "
                f"{MOST_ADAM:g})"
            )
    if not isinstance(options.seed, int):
        faults.append(f"seed: {options.seed!r} is no whole number")
    if faults:
        raise ValueError(f"fuse: {'; '.join(faults)}")


def _method_faults(options: FuseOptions) -> list[str]:
    method = options.method
    if method == MEAN:
        names = ", ".join(options.options)
        return [f"{names}: mean has no options"] if names else []
    if method == "wise_ft":
        return ["wise_ft: is the mean with a server_rate; use these"]
    known = [MEAN, LINEAR, *sorted(MERGES)]
    if method not in known:
        return [
            f"unknown method '{method}'{_near(method, known)} There are "
            f"{', '.join(known)}."
        ]
    record = MERGES["weighted_average" if method == LINEAR else method]
    try:
        check_options(method, record, values(options.options))
    except ValueError as error:
        return [str(error).removeprefix("--set ")]
    return []


def values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method as merges take them: JSON's lists are tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def _optimizer_faults(options: FuseOptions) -> list[str]:
    if options.optimizer not in OPTIMIZERS:
        near = _near(options.optimizer, list(OPTIMIZERS))
        return [
            f"unknown optimizer '{options.optimizer}'{near} There are "
            f"{', '.join(OPTIMIZERS)}."
        ]
    known = OPTIMIZERS[options.optimizer]
    faults = []
    for name, value in options.optimizer_options.items():
        if name not in known:
            faults.append(
                f"{options.optimizer} has no option '{name}'{_near(name, list(known))} "
                f"It has {', '.join(known) or 'none'}."
            )
        elif name == "tau" and not (_is_number(value) and value > 0):
            faults.append(f"tau: {value!r} is no number greater than 0")
        elif name != "tau" and not (_is_number(value) and 0 <= value < 1):
            faults.append(f"{name}: {value!r} is no number from 0 to below 1")
    return faults


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "."
