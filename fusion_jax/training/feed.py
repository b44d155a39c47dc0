"""Batches of K experts on their way to the device, a pure function of the step."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from fusion_jax.data.batches import stack_batches
from fusion_jax.training.sharding import batch_shardings, place, replicated
from fusion_jax.types import Batch


class Batches(Protocol):
    """What a fit needs of training batches; `data.batches.TrainBatches` has it."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the rows."""
        ...

    def batch(self, step: int) -> Batch:
        """The numpy batch of a step, counted over all epochs."""
        ...


class Fed(NamedTuple):
    """One step's input.

    Attributes:
      batch: placed arrays [B, ...] of a shared batch, or [K, B, ...].
      active: [K] bool of the experts that have a batch in this step; None = all.
      tokens: [K] int64 of real tokens that are learned from.
    """

    batch: Batch
    active: jax.Array | None
    tokens: np.ndarray


class Feed:
    """The training batches of a stack of K experts, epoch by epoch.

    An expert with fewer batches than the longest pauses at the end of each epoch, so
    that it takes the steps that it would take alone.
    """

    def __init__(self, trains: Sequence[Batches], mesh: Mesh):
        """Takes K sources of batches; the same object K times is fed once."""
        self._trains = list(trains)
        self._mesh = mesh
        self.one_batch = all(train is trains[0] for train in trains)
        self.steps = np.array([t.steps_per_epoch for t in trains], np.int64)
        self.rounds = int(self.steps.max())

    def checksum(self) -> int:
        """CRC-32 of the first batch of every expert."""
        found = 0
        for train in self._trains[:1] if self.one_batch else self._trains:
            for name, array in sorted(train.batch(0).items()):
                found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
                found = zlib.crc32(name.encode(), found)
        return found

    def at(self, epoch: int, inner: int) -> Fed:
        """The input of step `inner` of an epoch, both counted from 0."""
        active = inner < self.steps
        if self.one_batch:
            batch = self._trains[0].batch(epoch * self.rounds + inner)
            tokens = np.full(len(active), count_tokens(batch))
        else:
            # A paused expert gets its last batch again and learns nothing from it.
            members = [
                train.batch(int(epoch * steps + min(inner, steps - 1)))
                for train, steps in zip(self._trains, self.steps, strict=True)
            ]
            tokens = np.array([count_tokens(member) for member in members]) * active
            if len(members) == 1:
                batch = {name: np.asarray(x)[None] for name, x in members[0].items()}
            else:
                batch = stack_batches(members)
        where = batch_shardings(batch, self._mesh, stacked=not self.one_batch)
        paused = None if active.all() else place(active, replicated(self._mesh))
        return Fed(place(dict(batch), where), paused, tokens)


def count_tokens(batch: Any) -> int:
    """Real tokens in real rows; rows where there are no tokens."""
    mask = np.asarray(batch["mask"])
    tokens = batch.get("attention_mask")
    if tokens is None:
        return int(mask.sum())
    return int((np.asarray(tokens).sum(axis=-1) * (mask > 0)).sum())
