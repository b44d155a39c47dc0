"""Train states on disk: the one file that knows Orbax.

A checkpoint is there in full or not at all: Orbax writes beside it and renames, and
what a killed process left is never taken for a state. Several processes of one job
call every function here together.
"""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1

from fusion_jax.atomic import WriteFailed
from fusion_jax.processes import is_first


def _is_news(record: logging.LogRecord) -> bool:
    # Orbax logs each error of its threads with a traceback, and then raises it too.
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


logging.getLogger("absl").addFilter(_is_news)

_FULL = ("no space left", "disk quota", "file too large", "enospc", "edquot")


class UnreadableState(ValueError):
    """A train state is damaged, or of another structure than asked for."""


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree, without its values."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def save(path: str | os.PathLike[str], tree: Any, metadata: Any = None) -> None:
    """Writes a tree of arrays as one checkpoint; what stood there is replaced.

    Args:
      path: directory to be made.
      tree: pytree of jax or numpy arrays.
      metadata: optional JSON value kept beside it.

    Raises:
      WriteFailed: the disk is full or the folder not writable.
    """
    target = Path(path).absolute()
    # Orbax would remove what stands there before it writes.
    staging = target.with_name(f".{target.name}.new")
    with _explained_write(target), _context():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            v1.save(str(staging), tree, overwrite=True, custom_metadata=metadata)
        except BaseException:
            for left in target.parent.glob(f"{staging.name}*"):
                shutil.rmtree(left, ignore_errors=True)
            raise
        if is_first():
            _swap(staging, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"saved {target.name}")


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Reads a checkpoint into the shapes, dtypes and shardings of `like`.

    Args:
      path: directory written by `save`.
      like: tree of arrays or `jax.ShapeDtypeStruct` with shardings.

    Raises:
      FileNotFoundError: there is no checkpoint.
      UnreadableState: it is damaged or of another structure.
    """
    target = Path(path).absolute()
    if not target.exists():
        raise FileNotFoundError(f"{target}: no checkpoint there")
    with _explained_read(target), _context():
        return v1.load(str(target), abstract(like) if _has_values(like) else like)


def load_metadata(path: str | os.PathLike[str]) -> Any:
    """The JSON value kept beside a checkpoint, None if there is no checkpoint."""
    target = Path(path).absolute()
    if not target.exists():
        return None
    with _explained_read(target), _context():
        return v1.metadata(str(target)).custom_metadata


class Manager:
    """The numbered states of one training, of which only the newest is kept."""

    def __init__(self, directory: str | os.PathLike[str]):
        """Opens a directory, made if absent; leftovers of a kill are removed."""
        self.directory = Path(directory).absolute()
        with _explained_write(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            newest: Any = v1.training.preservation_policies.LatestN(1)
            self._checkpointer = v1.training.Checkpointer(
                str(self.directory),
                context=_context(),
                preservation_policy=newest,
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "Manager":
        """The manager itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        self.close()

    def close(self) -> None:
        """Waits for the last write and closes.

        Raises:
          WriteFailed: the disk is full or the folder not writable.
        """
        with _explained_write(self.directory):
            self._checkpointer.close()

    def save(self, step: int, state: Any, metadata: Any = None) -> None:
        """Writes the state of a step, then drops the older ones.

        The arrays are copied before this returns and may be donated; the file is
        finished in the background, at the latest by the next save or the close.

        Args:
          step: number of the state, larger than the last one.
          state: pytree of arrays.
          metadata: optional JSON value kept beside it.

        Raises:
          WriteFailed: the disk is full or the folder not writable.
        """
        with _explained_write(self.directory):
            self._checkpointer.wait()
            self._checkpointer.save_async(
                step, state, force=True, overwrite=True, custom_metadata=metadata
            )

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
          WriteFailed: the disk is full or the folder not writable.
        """
        with _explained_write(self.directory):
            self._checkpointer.wait()

    def latest_metadata(self) -> Any:
        """What was saved beside the newest state, None where nothing was saved."""
        latest = self._checkpointer.latest
        if latest is None:
            return None
        with _explained_read(self.directory / str(latest.step)):
            return self._checkpointer.metadata(latest).custom_metadata

    def restore_latest(self, like: Any) -> tuple[int, Any, Any] | None:
        """The newest state, into the shapes and shardings of `like`.

        Returns:
          (step, state, metadata), or None where nothing was saved.

        Raises:
          UnreadableState: it is damaged or of another structure.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return None
        metadata = self.latest_metadata()
        with _explained_read(self.directory / str(latest.step)):
            shapes = abstract(like) if _has_values(like) else like
            state = self._checkpointer.load(latest, abstract_state=shapes)
        return latest.step, state, metadata


def _swap(staging: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(staging, target)
    shutil.rmtree(old, ignore_errors=True)


def _context() -> v1.Context:
    context = v1.Context()
    # Trained float32 weights hardly compress (8 % by zstd), which costs more seconds
    # on a CPU than writing them does.
    context.array.saving.use_compression = False
    return context


def _has_values(tree: Any) -> bool:
    return any(isinstance(x, jax.Array) for x in jax.tree.leaves(tree))


@contextmanager
def _explained_write(target: Path) -> Iterator[None]:
    try:
        yield
    except WriteFailed:
        raise
    except Exception as error:
        text = str(error).lower()
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or any(word in text for word in _FULL):
            raise WriteFailed(
                errno.ENOSPC,
                f"the disk is full while writing the train state {target}; the state "
                "before it is untouched: free some space, then run again to go on",
            ) from error
        if isinstance(error, PermissionError) or "permission denied" in text:
            raise WriteFailed(
                errno.EACCES,
                f"no permission to write the train state {target}; choose another "
                "folder",
            ) from error
        raise


@contextmanager
def _explained_read(target: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "?"
        raise UnreadableState(
            f"{target}: the state cannot be read ({type(error).__name__}: {first}); "
            "it is damaged or of another model: remove this folder to start anew"
        ) from error
