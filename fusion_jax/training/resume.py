"""Going on after a kill: the course of a fit, and where it and the arrays are kept."""

import dataclasses
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusion_jax.checkpoints import orbax
from fusion_jax.processes import is_first
from fusion_jax.training.config import FitConfig
from fusion_jax.training.feed import Feed
from fusion_jax.training.selection import Standing
from fusion_jax.trees import flatten
from fusion_jax.types import ParamStack


@dataclasses.dataclass
class Course:
    """Where a fit of K experts is; everything about it that is not an array.

    Attributes:
      standings: of the K experts.
      tokens: learned from so far, of each.
      phase: number of the phase.
      epoch, inner: of the next step, counted from 0.
      history: one record an expert an epoch.
      seconds: spent so far, over all starts.
    """

    standings: list[Standing]
    tokens: list[int]
    phase: int = 0
    epoch: int = 0
    inner: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def start(cls, size: int) -> "Course":
        """At the first step of K experts."""
        return cls([Standing() for _ in range(size)], [0] * size)

    @property
    def all_stopped(self) -> bool:
        """Whether no expert trains any more."""
        return all(standing.stopped for standing in self.standings)

    def advance(self, tokens: np.ndarray) -> None:
        """Counts one step with so many tokens for each expert."""
        self.inner += 1
        self.tokens = [a + int(b) for a, b in zip(self.tokens, tokens, strict=True)]

    def position(self, rounds: int) -> int:
        """Steps done, all epochs together."""
        return self.epoch * rounds + self.inner

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        standings = [standing.to_json() for standing in self.standings]
        return dataclasses.asdict(self) | {"standings": standings}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Course":
        """The inverse of `to_json`."""
        standings = [Standing.from_json(one) for one in record["standings"]]
        return dataclasses.replace(cls(**record), standings=standings)


class Saver:
    """The states of one group of experts in a folder; without a folder, nothing.

    `folder/steps` holds the newest state of a fit under way, `folder/result` what a
    finished fit returned: started again, it returns that at once.
    """

    def __init__(
        self, folder: Path | None, identity: dict[str, Any], save_seconds: float = 0.0
    ):
        """Opens the folder; `identity` says which fit this is."""
        self._folder = folder
        self._identity = identity
        self._save_seconds = save_seconds
        self._saved_at = time.monotonic()
        self._manager: orbax.Manager | None = None

    def finished(self, like: ParamStack) -> tuple[Course, ParamStack] | None:
        """What the fit returned, if it came to its end before."""
        if self._folder is None:
            return None
        record = orbax.load_metadata(self._folder / "result")
        if record is None:
            return None
        self._check(record)
        course = Course.from_json(record["course"])
        return course, orbax.load(self._folder / "result", like)

    def course(self) -> Course | None:
        """Where a fit under way was saved last.

        Raises:
          ValueError: the folder holds another fit; what differs is listed.
        """
        if self._folder is None:
            return None
        self._manager = orbax.Manager(self._folder / "steps")
        record = self._manager.latest_metadata()
        if record is None:
            return None
        self._check(record)
        return Course.from_json(record["course"])

    def restore(self, like: Any) -> Any:
        """The arrays saved with `course`."""
        assert self._manager is not None
        latest = self._manager.restore_latest(like)
        assert latest is not None
        return latest[1]

    def save(self, number: int, course: Course, arrays: Any, *, due: bool) -> None:
        """Writes a state in the background; unless `due`, not too soon.

        Args:
          number: of the state, growing.
          course: where the fit is.
          arrays: what `restore` gives back.
          due: whether to write however short ago the last one was.
        """
        if self._manager is None:
            return
        # Several processes write together: their clocks must not decide.
        waited = time.monotonic() - self._saved_at >= self._save_seconds
        if due or waited or jax.process_count() > 1:
            record = {"identity": self._identity, "course": course.to_json()}
            self._manager.save(number, arrays, record)
            self._saved_at = time.monotonic()

    def finish(self, course: Course, params: ParamStack) -> None:
        """Writes what the fit returns, then removes the states on the way."""
        if self._folder is None:
            return
        self.close()
        record = {"identity": self._identity, "course": course.to_json()}
        orbax.save(self._folder / "result", params, record)
        if is_first():
            shutil.rmtree(self._folder / "steps", ignore_errors=True)

    def close(self) -> None:
        """Waits for the last write."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _check(self, record: dict[str, Any]) -> None:
        before, now = _flat(record["identity"]), _flat(self._identity)
        differing = [
            f"{name}: was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self._folder} holds the state of another fit; these differ:\n  "
                + "\n  ".join(differing)
                + "\nUse another workdir or name, or remove that folder to start anew."
            )


def identity_of(
    config: FitConfig,
    kind: str,
    names: Sequence[str],
    metrics: Sequence[str],
    stack: ParamStack,
    feed: Feed,
    dev_rows: Sequence[int],
) -> dict[str, Any]:
    """What decides the outcome of a fit, as JSON values; arrays by their checksum."""
    return {
        "config": config.decisive(),
        "kind": kind,
        "experts": list(names),
        "metrics": list(metrics),
        "steps_per_epoch": feed.steps.tolist(),
        "dev_rows": list(dev_rows),
        "first_batch": feed.checksum(),
        "start": _checksum(stack),
    }


def _checksum(tree: ParamStack) -> int:
    """CRC-32 of names and bytes; 0 where this process holds a part only."""
    found = 0
    for name, leaf in sorted(flatten(tree).items()):
        if not getattr(leaf, "is_fully_addressable", True):
            return 0
        array = np.ascontiguousarray(leaf)
        found = zlib.crc32(array.view(np.uint8).data, zlib.crc32(name.encode(), found))
    return found


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in flatten(record).items()
    }
