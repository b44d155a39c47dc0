"""The step from a base to the next: a server rate, momentum or Adam."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fusion_jax.checkpoints.output import Slot
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration.fuse_options import NONE, FuseOptions
from fusion_jax.collaboration.weights_file import (
    Weights,
    WeightsFile,
    open_weights,
    written,
)

STATES = {NONE: (), "momentum": ("momentum",), "adam": ("first", "second")}
"""Optimizer -> what it keeps of every tensor, under 'first/<tensor>'."""

_STEP = "step"


class Server:
    """Takes the step of one round, piece by piece.

    none:      theta' = theta + a delta
    momentum:  m' = b m + delta;  theta' = theta + a m'
    adam:      m' = b1 m + (1 - b1) delta;  v' = b2 v + (1 - b2) delta^2;
               theta' = theta + a m' / (sqrt(v') + tau),  v = tau^2 before the first

    in float64; the state is kept in float32 (float64 of float64 weights). With stale
    contributions momentum is known to do harm (arXiv:2401.09135), so that none is the
    default.

    Reference: Hsu et al. 2019, arXiv:1909.06335 (FedAvgM); Reddi et al. 2021,
    arXiv:2003.00295, algorithm 2 (FedAdam, which corrects no bias).
    """

    def __init__(
        self, options: FuseOptions, before: Weights | None, after: WeightsFile | None
    ) -> None:
        """Prepares a step.

        Args:
          options: rate and optimizer.
          before: state of the parent; None at the first step, or without optimizer.
          after: where the new state is written; None without optimizer.
        """
        self._options, self._before, self._after = options, before, after
        self._values = options.optimizer_values

    def towards(
        self, name: str, piece: slice, base: np.ndarray, target: np.ndarray
    ) -> np.ndarray:
        """The step to weights that a method gave.

        Args:
          name: of the tensor.
          piece: of the flattened tensor.
          base: theta, [piece] float64.
          target: what the method gave, likewise.

        Returns:
          [piece] float64; without an optimizer the target itself at a rate of 1, else
          (1 - a) theta + a target.
        """
        rate = self._options.server_rate
        if self._options.optimizer != NONE:
            return self.along(name, piece, base, target - base)
        # Not as a formula: 0 times the base would lose the sign of -0.
        return target if rate == 1 else (1 - rate) * base + rate * target

    def along(
        self, name: str, piece: slice, base: np.ndarray, delta: np.ndarray
    ) -> np.ndarray:
        """The step by a delta, [piece] float64, of the same arguments."""
        rate = self._options.server_rate
        if self._options.optimizer == NONE:
            return base + rate * delta
        if self._options.optimizer == "momentum":
            momentum = self._values["momentum"] * self._kept("momentum", name, piece)
            momentum += delta
            self._keep("momentum", name, piece, momentum)
            return base + rate * momentum
        beta1, beta2, tau = (self._values[x] for x in ("beta1", "beta2", "tau"))
        first = beta1 * self._kept("first", name, piece) + (1 - beta1) * delta
        second = self._kept("second", name, piece, tau**2)
        second = beta2 * second + (1 - beta2) * delta**2
        self._keep("first", name, piece, first)
        self._keep("second", name, piece, second)
        return base + rate * first / (np.sqrt(second) + tau)

    def _kept(
        self, what: str, name: str, piece: slice, start: float = 0.0
    ) -> np.ndarray:
        if self._before is None:
            return np.full(piece.stop - piece.start, start)
        return self._before.wide(f"{what}/{name}", piece)

    def _keep(self, what: str, name: str, piece: slice, values: np.ndarray) -> None:
        assert self._after is not None
        self._after.write_rounded(f"{what}/{name}", piece.start, values)


@contextlib.contextmanager
def server(
    options: FuseOptions,
    slots: Sequence[Slot],
    state: Path | None,
    state_out: Path | None,
) -> Iterator[Server]:
    """Yields a server whose state is written when the block ends well.

    Args:
      options: rate and optimizer.
      slots: floating tensors of the base.
      state: of the parent; None at the first step. Not read without an optimizer.
      state_out: file of the new state; none is written without an optimizer.

    Raises:
      ValueError: an optimizer whose state would be lost.
      CheckpointError: a state of another optimizer or of another model.
    """
    if options.optimizer == NONE:
        yield Server(options, None, None)
        return
    if state_out is None:
        raise ValueError(
            f"fuse: {options.optimizer} has a state; say where it is to be written"
        )
    kept = [
        Slot(f"{what}/{slot.name}", slot.shape, _wide(slot.dtype))
        for slot in slots
        for what in STATES[options.optimizer]
    ]
    kept.append(Slot(_STEP, (1,), np.dtype(np.int64)))
    before, step = None, 0
    if state is not None:
        before = open_weights(state)
        _check(before, kept, options.optimizer)
        step = int(before.read(_STEP, slice(0, 1))[0])
    with written(state_out, kept) as after:
        after.write(_STEP, 0, np.array([step + 1]))
        yield Server(options, before, after)


def _wide(dtype: np.dtype) -> np.dtype:
    return dtype if dtype == np.float64 else np.dtype(np.float32)


def _check(before: Weights, wanted: Sequence[Slot], optimizer: str) -> None:
    if set(before.slots) != set(wanted):
        held = sorted({name.partition("/")[0] for name in before.tensors})
        raise CheckpointError(
            f"{before.file}: holds {', '.join(held)} and is no state of {optimizer} "
            "for this base; begin anew without a state"
        )
