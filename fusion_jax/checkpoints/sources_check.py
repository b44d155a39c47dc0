"""What is read of the sources beside the merge: their SHA-256, and faulty numbers."""

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fusion_jax.checkpoints.lazy import LazyCheckpoint, TensorInfo
from fusion_jax.checkpoints.tensors import CheckpointError

_BLOCK = 2**22


class SourceCheck:
    """Hashes every weight file and looks for NaN and infinity, in a thread of its own.

    Reading the files for their hashes brings them into the page cache, from which the
    merge then reads; so this thread starts first.
    """

    def __init__(self, models: Mapping[str, LazyCheckpoint], *, finite: bool) -> None:
        """Starts.

        Args:
          models: by label.
          finite: whether NaN and infinity are faults.
        """
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._work: Future[tuple[dict[str, dict[str, str]], list[str]]] = (
            self._pool.submit(self._run, dict(models), finite)
        )

    def result(self) -> dict[str, dict[str, str]]:
        """{label: {file name: SHA-256}}, once all is read.

        Raises:
          CheckpointError: names every tensor with NaN or infinity.
        """
        hashes, faults = self._work.result()
        if faults:
            raise CheckpointError(
                f"{len(faults)} tensors of the sources hold NaN or infinity: "
                f"{'; '.join(faults[:12])}"
                f"{f' and {len(faults) - 12} more' if len(faults) > 12 else ''}. The "
                "run that wrote them diverged: take an earlier checkpoint, or pass "
                "--allow-nonfinite to merge them all the same"
            )
        return hashes

    def raise_if_known(self) -> None:
        """Raises what is wrong, if that is known already."""
        if self._work.done():
            self.result()

    def close(self) -> None:
        """Stops reading."""
        self._stop.set()
        self._pool.shutdown(wait=True)

    def _run(
        self, models: dict[str, LazyCheckpoint], finite: bool
    ) -> tuple[dict[str, dict[str, str]], list[str]]:
        hashes: dict[str, dict[str, str]] = {}
        known: dict[Path, tuple[str, list[str]]] = {}
        faults = []
        for label, model in models.items():
            hashes[label] = {}
            for file in model.files:
                if self._stop.is_set():
                    return hashes, faults
                real = file.resolve()
                if real not in known:
                    infos = [x for x in model.tensors.values() if x.file == file]
                    known[real] = self._read(real, infos, finite)
                digest, bad = known[real]
                hashes[label][file.name] = digest
                faults += [f"{label}: {fault}" for fault in bad]
        return hashes, faults

    def _read(
        self, file: Path, infos: list[TensorInfo], finite: bool
    ) -> tuple[str, list[str]]:
        digest = hashlib.sha256()
        counts: dict[str, int] = {}
        buffer = np.empty(_BLOCK, np.uint8)
        rest = [x for x in infos if finite and x.floating and x.size]
        position = 0
        with file.open("rb", buffering=0) as handle:
            while not self._stop.is_set():
                read = handle.readinto(buffer)  # type: ignore[arg-type]
                if not read:
                    break
                digest.update(buffer[:read].data)
                end = position + read
                for info in rest:
                    bad = _not_finite(buffer, position, end, info)
                    if bad:
                        counts[info.name] = counts.get(info.name, 0) + bad
                rest = [x for x in rest if x.offset + x.num_bytes > end]
                position = end
        sizes = {info.name: info.size for info in infos}
        return digest.hexdigest(), [
            f"{name} ({bad} of {sizes[name]})" for name, bad in counts.items()
        ]


def _not_finite(buffer: np.ndarray, begin: int, end: int, info: TensorInfo) -> int:
    """How many of a tensor's elements in bytes [begin, end) of its file are not finite.

    An element that two blocks share is looked at in neither: blocks and elements have
    lengths that are powers of two, so that only a tensor at an odd place has any, and
    the output is looked at as well.
    """
    width = info.dtype.itemsize
    first = max(begin, info.offset)
    first += -(first - info.offset) % width
    last = min(end, info.offset + info.num_bytes)
    last -= (last - info.offset) % width
    if last <= first:
        return 0
    values = np.frombuffer(buffer[first - begin : last - begin], info.dtype)
    if info.dtype.kind != "f":
        values = values.astype(np.float32)
    # One product says that all is well: NaN and infinity both make it NaN.
    if values.dtype == np.float32:
        with np.errstate(invalid="ignore"):
            if np.isfinite(np.dot(values, np.zeros_like(values))):
                return 0
    return int(len(values) - np.count_nonzero(np.isfinite(values)))
