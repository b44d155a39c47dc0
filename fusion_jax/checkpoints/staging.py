"""The hidden folder in which a merge grows: locked, recorded, published whole."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from fusion_jax.checkpoints.output import Shards

_SYNC_BYTES = 2**29  # written between two records of what is done
_SYNC_SECONDS = 5.0
_DONE, _PLAN = "done.txt", "plan.json"
_logger = logging.getLogger("fusion_jax")


class Staging:
    """The folder '.NAME.merging' beside an output.

    Attributes:
      folder: its path.
      norms: tensor -> L2 norm, of all tensors that are written, those of an interrupted
        run of the same merge among them.
      resumed: how many those were.
    """

    def __init__(self, out: Path, mark: str) -> None:
        """Makes the folder, or takes up what an interrupted run has left.

        Args:
          out: of the merge.
          mark: what decides the output; a folder of another mark is emptied.

        Raises:
          FileExistsError: another process merges to the same output just now.
        """
        self._out = out
        self.folder = out.parent / f".{out.name}.merging"
        self.folder.mkdir(parents=True, exist_ok=True)
        # On the folder itself: the lock ends with the process and leaves no file.
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise FileExistsError(
                f"--out: another process is merging to {out}; wait for it, or choose "
                "another folder"
            ) from error
        self.norms = self._taken_up(mark)
        self.resumed = len(self.norms)
        self._waiting: list[str] = []
        self._unsynced, self._last = 0, time.monotonic()

    def forget(self, names: Iterable[str]) -> None:
        """Takes back that tensors are written: their file is not there any more."""
        for name in names:
            self.norms.pop(name, None)
        self.resumed = len(self.norms)

    def write(
        self,
        shards: Shards,
        name: str,
        pieces: Iterator[tuple[int, np.ndarray]],
        progress: Callable[[str, int], None] | None,
    ) -> None:
        """Writes one tensor, and now and then the record of what is safely on disk."""
        squares, written = 0.0, 0
        for start, values in pieces:
            shards.write(name, start, values)
            squares += _squares(values)
            written += values.nbytes
        self.norms[name] = float(np.sqrt(squares))
        self._waiting.append(name)
        self._unsynced += written
        late = time.monotonic() - self._last > _SYNC_SECONDS
        if late or self._unsynced > _SYNC_BYTES:
            self.record(shards)
        if progress is not None:
            progress(name, written)

    def record(self, shards: Shards) -> None:
        """Syncs what is written, and then says so."""
        if not self._waiting:
            return
        shards.sync()
        lines = [json.dumps([name, self.norms[name]]) + "\n" for name in self._waiting]
        with (self.folder / _DONE).open("a") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self._waiting, self._unsynced, self._last = [], 0, time.monotonic()

    def finish(self) -> None:
        """Takes away the records: what is left is the output."""
        for name in (_DONE, _PLAN):
            (self.folder / name).unlink(missing_ok=True)

    def publish(self) -> None:
        """The finished folder gets its name; one that was there goes last."""
        old = self._out.parent / f".{self._out.name}.replaced"
        if not self._out.exists():
            self.folder.rename(self._out)
            return
        shutil.rmtree(old, ignore_errors=True)
        self._out.rename(old)
        try:
            self.folder.rename(self._out)
        except BaseException:
            old.rename(self._out)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Removes the folder: what is wrong with the input is not gone on with."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Ends the lock."""
        os.close(self._lock)

    def _taken_up(self, mark: str) -> dict[str, float]:
        plan, done = self.folder / _PLAN, self.folder / _DONE
        if not (plan.is_file() and plan.read_text() == mark):
            held = list(self.folder.iterdir())
            if held:
                _logger.info("%s is of another merge; starting anew", self.folder)
            for file in held:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            plan.write_text(mark)
            return {}
        found: dict[str, float] = {}
        for line in done.read_text().splitlines() if done.is_file() else []:
            with contextlib.suppress(ValueError):  # a crash may have cut the last line
                name, norm = json.loads(line)
                found[name] = norm
        return found


def _squares(values: np.ndarray) -> float:
    if not values.size or values.dtype.kind in "iub":
        return 0.0
    wide = values if values.dtype == np.float64 else values.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.dot(wide, wide))
    if not np.isfinite(found) and np.isfinite(wide).all():  # the squares overflow
        found = float(np.dot(wide.astype(np.float64), wide.astype(np.float64)))
    return found
