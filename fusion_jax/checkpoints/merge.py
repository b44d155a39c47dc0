"""Merges checkpoint folders by a plan: bounded memory, resumed, whole or not at all."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusion_jax import atomic
from fusion_jax.checkpoints.lazy import DTYPES, LazyCheckpoint, open_checkpoint
from fusion_jax.checkpoints.leaves import COPY, Align, Streamers, read_leaf
from fusion_jax.checkpoints.output import Shards, Slot
from fusion_jax.checkpoints.pieces import common_dtype
from fusion_jax.checkpoints.plan import MergePlan, TensorPlan
from fusion_jax.checkpoints.sources_check import SourceCheck
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.merging import MERGES
from fusion_jax.merging.form import Facts
from fusion_jax.version import __version__

SHARD_BYTES = 5 * 10**9
_SYNC_BYTES = 2**29  # written between two records of what is done
_DONE, _PLAN = "done.txt", "plan.json"
_logger = logging.getLogger("fusion_jax")


@dataclass(frozen=True)
class Merged:
    """What a merge left behind.

    Attributes:
      directory: of the output.
      hashes: label -> {file: SHA-256} of the sources.
      norms: tensor -> L2 norm of the output.
      resumed: tensors that an earlier, interrupted run had done.
    """

    directory: Path
    hashes: Mapping[str, Mapping[str, str]]
    norms: Mapping[str, float]
    resumed: int


def merge(
    plan: MergePlan,
    out: Path,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    finish: Callable[[Path, Mapping[str, Any]], None] | None = None,
    align: Align | None = None,
    aligned_shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Merged:
    """Runs a plan.

    The output grows in a hidden folder beside `out`, '.NAME.merging', and gets its name
    when all of it is there. What an interrupted run had done is not done again, if
    plan, sources and options are the same.

    Args:
      plan: what to do.
      out: folder of the output.
      seed: of methods that draw random masks.
      shard_bytes: most bytes of a weight file.
      allow_nonfinite: merge sources with NaN or infinity all the same.
      overwrite: replace a folder that is there.
      finish: called with (folder, {'hashes': ..., 'norms': ...}) when the weights are
        written, to add config, tokenizer and card.
      align: rows of tensors with a vocabulary axis -> rows of one vocabulary.
      aligned_shapes: of the tensors that `align` is for.
      progress: called with (tensor, bytes written) after each tensor.

    Raises:
      CheckpointError: faults of the sources, all at once.
      FileExistsError: `out` is there and `overwrite` is False.
      WriteFailed: the disk is full, or the folder not writable.
    """
    models = {label: open_checkpoint(path) for label, path in plan.models.items()}
    refuse_existing(out, overwrite=overwrite)
    _refuse_sources(plan, out)
    shapes = aligned_shapes or {}
    slots = [slot_of(tensor, plan, models, shapes) for tensor in plan.tensors]
    mark = fingerprint(plan, models, seed, shard_bytes)
    staging = out.parent / f".{out.name}.merging"
    with atomic.explained(out):
        done = _continue(staging, mark)
        try:
            shards = Shards(staging, slots, shard_bytes)
        except OSError:  # no room: nothing is left behind
            shutil.rmtree(staging, ignore_errors=True)
            raise
    if done:
        _logger.info("going on: %d of %d tensors are there", len(done), len(slots))
    check = SourceCheck(models, finite=not allow_nonfinite)
    try:
        with atomic.explained(out):
            writer = _Writer(shards, staging, done, progress)
            for tensor, pieces in _pieces(
                plan, models, slots, seed, set(done), align, shapes
            ):
                writer.write(tensor, pieces)
                check.raise_if_known()
            writer.record()
            hashes = check.result()
            if not allow_nonfinite:
                _refuse_nonfinite(writer.norms)
            shards.finish()
            for name in (_DONE, _PLAN):
                (staging / name).unlink()
            if finish is not None:
                finish(staging, {"hashes": hashes, "norms": writer.norms})
            _publish(staging, out)
    except (ValueError, atomic.WriteFailed):
        # What is wrong with the input, or has no room, is not gone on with.
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        shards.close()
        check.close()
    return Merged(out, hashes, writer.norms, len(done))


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Raises FileExistsError where an output would be replaced unasked."""
    if out.exists() and not overwrite:
        raise FileExistsError(
            f"--out: {out} is there already; choose another folder, or pass --overwrite"
        )
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--out: {out} is a file; choose a folder")


def _refuse_sources(plan: MergePlan, out: Path) -> None:
    """Raises FileExistsError where the output would replace what it is made of."""
    target = out.resolve()
    for label, folder in plan.models.items():
        source = folder.resolve()
        if source == target or target in source.parents:
            raise FileExistsError(
                f"--out: {out} holds the model '{label}'; choose another folder"
            )


def fingerprint(
    plan: MergePlan, models: Mapping[str, LazyCheckpoint], seed: int, shard_bytes: int
) -> str:
    """SHA-256 of all that decides the output, files by size and time of change."""
    files = {
        label: [
            (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
            for file in model.files
        ]
        for label, model in models.items()
    }
    said = repr((plan, files, seed, shard_bytes, __version__))
    return hashlib.sha256(said.encode()).hexdigest()


class _Writer:
    """Writes tensors and keeps the record of what is safely on the disk."""

    def __init__(
        self,
        shards: Shards,
        staging: Path,
        done: Mapping[str, float],
        progress: Callable[[str, int], None] | None,
    ) -> None:
        self.norms: dict[str, float] = dict(done)
        self._shards, self._staging, self._progress = shards, staging, progress
        self._waiting: list[str] = []
        self._unsynced = 0

    def write(self, name: str, pieces: Iterator[tuple[int, np.ndarray]]) -> None:
        squares, written = 0.0, 0
        for start, values in pieces:
            self._shards.write(name, start, values)
            squares += _squares(values)
            written += values.nbytes
        self.norms[name] = float(np.sqrt(squares))
        self._waiting.append(name)
        self._unsynced += written
        if self._unsynced > _SYNC_BYTES:
            self.record()
        if self._progress is not None:
            self._progress(name, written)

    def record(self) -> None:
        if not self._waiting:
            return
        self._shards.sync()
        lines = [json.dumps([name, self.norms[name]]) + "\n" for name in self._waiting]
        with (self._staging / _DONE).open("a") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self._waiting, self._unsynced = [], 0


def _squares(values: np.ndarray) -> float:
    if not values.size or values.dtype.kind in "iub":
        return 0.0
    wide = values if values.dtype == np.float64 else values.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.dot(wide, wide))
    if not np.isfinite(found) and np.isfinite(wide).all():  # the squares overflow
        found = float(np.dot(wide.astype(np.float64), wide.astype(np.float64)))
    return found


def _pieces(
    plan: MergePlan,
    models: Mapping[str, LazyCheckpoint],
    slots: Sequence[Slot],
    seed: int,
    done: set[str],
    align: Align | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, Iterator[tuple[int, np.ndarray]]]]:
    """The tensors that are still to be written, each as pieces."""
    streamers = Streamers(seed=seed)
    model_type = str(models[plan.donor].config().get("model_type", ""))
    dtype = None if plan.dtype is None else floating_dtype(plan.dtype)
    by_slot = dict(zip((t.name for t in plan.tensors), slots, strict=True))

    def leaf(tensor: TensorPlan) -> Any:
        return read_leaf(
            tensor, models, dtype=dtype, align=align if tensor.name in shapes else None
        )

    of_models: dict[int, list[TensorPlan]] = {}
    whole: list[TensorPlan] = []
    for tensor in plan.tensors:
        if not by_slot[tensor.name].num_bytes:
            if tensor.name not in done:
                yield tensor.name, iter(())
        elif tensor.method == COPY:
            if tensor.name not in done:
                yield tensor.name, _copied(leaf(tensor), by_slot[tensor.name].dtype)
        elif MERGES[tensor.method].form is None:
            whole.append(tensor)
        else:
            streamer = streamers.of(tensor, model_type)
            if streamer.form.scope == "model":
                of_models.setdefault(id(streamer), []).append(tensor)
            elif tensor.name not in done:
                one = leaf(tensor)
                facts = streamer.facts([one])[0]
                target = by_slot[tensor.name].dtype
                yield tensor.name, streamer.merged(one, facts, target)
    for group in of_models.values():
        if all(tensor.name in done for tensor in group):
            continue
        streamer = streamers.of(group[0], model_type)
        leaves = [leaf(tensor) for tensor in group]
        all_facts: Sequence[Facts] = streamer.facts(leaves)
        for tensor, one, facts in zip(group, leaves, all_facts, strict=True):
            if tensor.name not in done:
                target = by_slot[tensor.name].dtype
                yield tensor.name, streamer.merged(one, facts, target)
    if any(tensor.name not in done for tensor in whole):
        yield from _in_memory(whole, leaf, by_slot, seed)


def _copied(leaf: Any, dtype: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
    flat = leaf.experts[0].reshape(-1)
    step = 2**22
    for start in range(0, len(flat), step):
        yield start, flat[start : start + step].astype(dtype, copy=False)


def _in_memory(
    group: Sequence[TensorPlan],
    leaf: Callable[[TensorPlan], Any],
    slots: Mapping[str, Slot],
    seed: int,
) -> Iterator[tuple[str, Iterator[tuple[int, np.ndarray]]]]:
    """Methods that need whole models at once: all tensors of one method together."""
    first = group[0]
    record = MERGES[first.method]
    leaves = {tensor.name: leaf(tensor) for tensor in group}
    given: dict[str, Any] = dict(first.options)
    if "base" in record.needs | record.accepts and first.base is not None:
        given["base"] = {n: np.asarray(x.base, np.float32) for n, x in leaves.items()}
    if "key" in record.needs:
        given["key"] = jax.random.key(seed)
    stack = {n: np.stack(x.experts, dtype=np.float32) for n, x in leaves.items()}
    merged: Any = record.function(
        jax.device_put(stack), np.asarray(first.coefficients, np.float32), **given
    )
    merged = merged if isinstance(merged, Mapping) else merged[0]
    for name, values in merged.items():
        flat = np.asarray(values).reshape(-1).astype(slots[name].dtype)
        yield name, iter([(0, flat)])


def slot_of(
    tensor: TensorPlan,
    plan: MergePlan,
    models: Mapping[str, LazyCheckpoint],
    shapes: Mapping[str, tuple[int, ...]],
) -> Slot:
    """Shape and dtype of a tensor of the output, from the headers of its sources."""
    infos = [models[s.model].tensors[s.tensor] for s in tensor.sources]
    shape = shapes.get(tensor.name, infos[0].shape)
    if not infos[0].floating:
        return Slot(tensor.name, shape, infos[0].dtype)
    wanted = plan.out_dtype or plan.dtype
    if wanted:
        return Slot(tensor.name, shape, floating_dtype(wanted))
    return Slot(tensor.name, shape, common_dtype([info.dtype for info in infos]))


def floating_dtype(name: str) -> np.dtype:
    """The dtype of a name; a CheckpointError if tensors cannot be merged to it."""
    known = {str(dtype): dtype for dtype in DTYPES.values() if dtype.kind not in "iub"}
    if name not in known:
        raise CheckpointError(
            f"dtype '{name}' is not one of {', '.join(sorted(known))}"
        )
    return known[name]


def _continue(staging: Path, mark: str) -> dict[str, float]:
    """Norms of the tensors that an interrupted run of the same merge has written."""
    plan, done = staging / _PLAN, staging / _DONE
    if staging.exists() and not (plan.is_file() and plan.read_text() == mark):
        _logger.info("%s is of another merge; starting anew", staging)
        shutil.rmtree(staging)
    if not staging.exists():
        staging.mkdir(parents=True)
        plan.write_text(mark)
        return {}
    found: dict[str, float] = {}
    for line in done.read_text().splitlines() if done.is_file() else []:
        with contextlib.suppress(ValueError):  # the last line of a crash may be cut
            name, norm = json.loads(line)
            found[name] = norm
    return found


def _refuse_nonfinite(norms: Mapping[str, float]) -> None:
    bad = [name for name, norm in norms.items() if not np.isfinite(norm)]
    if bad:
        raise CheckpointError(
            f"{len(bad)} tensors of the output are not finite, or too large for their "
            f"dtype: {', '.join(bad[:12])}{' ...' if len(bad) > 12 else ''}; look at "
            "the coefficients, or write a wider --dtype"
        )


def _publish(staging: Path, out: Path) -> None:
    """The finished folder gets its name; one that was there goes last."""
    old = out.parent / f".{out.name}.replaced"
    if not out.exists():
        staging.rename(out)
        return
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
