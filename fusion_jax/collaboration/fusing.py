"""Fuses contributions into the next base: deterministic, and in bounded memory."""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.checkpoints.object_files import file_sha256, table
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration.contributions import (
    Contribution,
    Member,
    clipped,
    opened,
    shares,
)
from fusion_jax.collaboration.file_merges import merged_file
from fusion_jax.collaboration.fuse_options import MEAN, FuseOptions, check
from fusion_jax.collaboration.mean import mean, mean_delta
from fusion_jax.collaboration.server import Server, server
from fusion_jax.collaboration.weights_file import (
    SPAN,
    Weights,
    open_weights,
    pieces,
    written,
)

__all__ = ["FuseOptions", "Fused", "Member", "check", "fuse"]

Step = Callable[[Server, str, slice, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Fused:
    """What a fuse did.

    Attributes:
      sha256: of the file of weights.
      bytes: its size.
      tensors: tensor -> [dtype, shape], as manifests hold it.
      weights: SHA-256 of a contribution's weights -> its share of the votes, of sum
        one.
      clipped: likewise -> what its way was multiplied by; only those shortened.
      notes: what the method did not do, for people.
      memory: 'accumulator_bytes', and 'peak_bytes' of the process, whatever it did
        before.
      seconds: of 'open', 'clip', 'merge' (0 for the mean), 'fuse' and 'hash'.
    """

    sha256: str
    bytes: int
    tensors: Mapping[str, Any]
    weights: Mapping[str, float]
    clipped: Mapping[str, float]
    notes: tuple[str, ...]
    memory: Mapping[str, int]
    seconds: Mapping[str, float]


def fuse(
    base: Path,
    members: Sequence[Member],
    options: FuseOptions,
    out: Path,
    *,
    state: Path | None = None,
    state_out: Path | None = None,
    config: Path | None = None,
) -> Fused:
    """Writes the next base.

    mean:    theta' = 1/N sum_c theta_c                                     (plain)
             theta' = theta + a sum_c v_c f_c (theta_c - theta_b(c)) / sum_c v_c
    another: theta' = theta + a (merge(theta_c) - theta)

    The plain form is taken where nobody is late and nobody is clipped, so that a rate
    a of 1 is the paper bit for bit; with another rate it is (1 - a) theta + a mean.
    Sums are taken in float64 in the order of the hashes of the contributions, whatever
    the order of `members`, and rounded once. The mean holds one piece of a tensor and
    one of a contribution, for any number of them; other methods hold a piece of all.

    The mean has no defence: one broken contribution ruins it. What protects is the
    screen before, and `clip`. Robust methods assume contributors alike; where they do
    different tasks, a median drops what only a minority has learned, and Krum keeps
    one task.

    Args:
      base: weights of the current base.
      members: the contributions, screened.
      options: method, rate, optimizer, discount, clipping.
      out: file of the next base's weights, in the order and dtypes of `base`; there in
        full or not at all. Its layout is that of the safetensors library, so that the
        same weights have the same hash.
      state: of the server optimizer, as the parent left it; None at the first step.
      state_out: file of its next state; needed with an optimizer.
      config: folder with config.json of the model, for methods that look at it.

    Raises:
      ValueError: options, or a number of contributions, that do not go together.
      CheckpointError: contributions that are not like the base, a state or statistics
        that are not theirs, or a result that is not finite.
      WriteFailed: the disk is full or the folder not writable.

    Reference: Don-Yehiya et al. 2023, arXiv:2212.01378; Reddi et al. 2021,
    arXiv:2003.00295 (server optimizers).
    """
    check(options)
    clock = _Clock()
    current = open_weights(base)
    contributions = opened(current, members, options.discount)
    clock.mark("open")
    contributions = clipped(contributions, options.clip)
    clock.mark("clip")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
        notes: tuple[str, ...] = ()
        if options.method == MEAN:
            step = _mean_step(contributions)
        else:
            merged = merged_file(current, contributions, options, config, Path(place))
            step, notes = _merged_step(merged.weights), merged.notes
        clock.mark("merge")
        _write(current, step, options, out, state, state_out)
    clock.mark("fuse")
    digest = file_sha256(out)
    clock.mark("hash")
    largest = max(info.size for info in current.tensors.values())
    return Fused(
        sha256=digest,
        bytes=out.stat().st_size,
        tensors=table(current.tensors),
        weights=shares(contributions),
        clipped={c.member.sha256: c.factor for c in contributions if c.factor != 1},
        notes=notes,
        memory={
            "accumulator_bytes": 8 * min(SPAN, largest),
            "peak_bytes": _peak_bytes(),
        },
        seconds=clock.seconds,
    )


def _mean_step(contributions: Sequence[Contribution]) -> Step:
    plain = all(contribution.plain for contribution in contributions)

    def step(server: Server, name: str, piece: slice, base: np.ndarray) -> np.ndarray:
        if plain:
            return server.towards(name, piece, base, mean(contributions, name, piece))
        return server.along(name, piece, base, mean_delta(contributions, name, piece))

    return step


def _merged_step(merged: Weights) -> Step:
    def step(server: Server, name: str, piece: slice, base: np.ndarray) -> np.ndarray:
        return server.towards(name, piece, base, merged.wide(name, piece))

    return step


def _write(
    base: Weights,
    step: Step,
    options: FuseOptions,
    out: Path,
    state: Path | None,
    state_out: Path | None,
) -> None:
    floating = [slot for slot in base.slots if base.tensors[slot.name].floating]
    bad = []
    with (
        written(out, base.slots) as file,
        server(options, floating, state, state_out) as taken,
    ):
        for name, info in base.tensors.items():
            for piece in pieces(info.size):
                values = base.read(name, piece)
                if info.floating:
                    wide = step(taken, name, piece, values.astype(np.float64))
                    if not file.write_rounded(name, piece.start, wide):
                        bad.append(name)
                else:
                    file.write(name, piece.start, values)
        if bad:
            names = list(dict.fromkeys(bad))
            raise CheckpointError(
                f"{len(names)} tensors of the next base are not finite, or too large "
                f"for their dtype: {', '.join(names[:12])}"
                f"{' ...' if len(names) > 12 else ''}; nothing was written. A "
                "contribution holds NaN or infinity, which a screen refuses, or the "
                "server's rate is too large"
            )


class _Clock:
    """Seconds between marks."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def mark(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
