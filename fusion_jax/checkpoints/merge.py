"""Merges checkpoint folders by a plan: bounded memory, resumed, whole or not at all."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import atomic
from fusion_jax.checkpoints.lazy import LazyCheckpoint, open_checkpoint
from fusion_jax.checkpoints.leaves import Align
from fusion_jax.checkpoints.merge_report import ReportLog
from fusion_jax.checkpoints.output import Shards
from fusion_jax.checkpoints.plan import MergePlan
from fusion_jax.checkpoints.plan_pieces import pieces_of
from fusion_jax.checkpoints.slots import slot_of
from fusion_jax.checkpoints.sources_check import SourceCheck
from fusion_jax.checkpoints.staging import Staging
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.version import __version__

SHARD_BYTES = 5 * 10**9
_logger = logging.getLogger("fusion_jax")


@dataclass(frozen=True)
class Merged:
    """What a merge left behind.

    Attributes:
      directory: of the output.
      hashes: label -> {file: SHA-256} of the sources.
      norms: tensor -> L2 norm of the output.
      resumed: tensors that an earlier, interrupted run had done.
      report: tensor -> how it came about; empty without statistics.
    """

    directory: Path
    hashes: Mapping[str, Mapping[str, str]]
    norms: Mapping[str, float]
    resumed: int
    report: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


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
        written, to add config, tokenizer and card; also 'dtypes', counts by name, and
        'report', tensor -> how it came about, of a plan with statistics.
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
    _refuse_quantised(models)
    shapes = aligned_shapes or {}
    slots = [slot_of(tensor, plan, models, shapes) for tensor in plan.tensors]
    mark = fingerprint(plan, models, seed, shard_bytes)
    with atomic.explained(out):
        staging = Staging(out, mark)
    shards, check = None, None
    report: Mapping[str, Mapping[str, Any]] = {}
    try:
        with atomic.explained(out):
            shards = Shards(staging.folder, slots, shard_bytes)
            staging.forget(shards.fresh)
            if staging.resumed:
                _logger.info(
                    "going on: %d of %d tensors are there", staging.resumed, len(slots)
                )
            check = SourceCheck(models, finite=not allow_nonfinite)
            log = ReportLog(staging.folder)
            for tensor, pieces in pieces_of(
                plan, models, slots, seed, set(staging.norms), align, shapes, log.add
            ):
                staging.write(shards, tensor, pieces, progress)
                check.raise_if_known()
            staging.record(shards)
            hashes = check.result()
            if not allow_nonfinite:
                _refuse_nonfinite(staging.norms)
            shards.finish()
            report = log.entries(plan) if plan.statistics else {}
            if finish is not None:
                dtypes = Counter(
                    str(s.dtype) for s in slots if s.dtype.kind not in "iub"
                )
                found = {"hashes": hashes, "norms": staging.norms, "report": report}
                finish(staging.folder, {**found, "dtypes": dict(dtypes)})
            log.finish()
            staging.finish()
            staging.publish()
    except (ValueError, atomic.WriteFailed):
        # What is wrong with the input, or has no room, is not gone on with.
        staging.discard()
        raise
    finally:
        if shards is not None:
            shards.close()
        if check is not None:
            check.close()
        staging.close()
    return Merged(out, hashes, staging.norms, staging.resumed, report)


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


def _refuse_quantised(models: Mapping[str, LazyCheckpoint]) -> None:
    """Raises CheckpointError for codes with scales beside them, which have no mean."""
    found = [
        label for label, m in models.items() if m.config().get("quantization_config")
    ]
    if found:
        raise CheckpointError(
            f"{', '.join(found)}: quantised (config.json has quantization_config); the "
            "mean of codes and the mean of scales are not the mean of weights: merge "
            "the unquantised checkpoints and quantise the result"
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
    } | {
        f"statistics of {label}": [
            (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
        ]
        for label, file in plan.statistics.items()
    }
    said = repr((plan, files, seed, shard_bytes, __version__))
    return hashlib.sha256(said.encode()).hexdigest()


def _refuse_nonfinite(norms: Mapping[str, float]) -> None:
    bad = [name for name, norm in norms.items() if not np.isfinite(norm)]
    if bad:
        raise CheckpointError(
            f"{len(bad)} tensors of the output are not finite, or too large for their "
            f"dtype: {', '.join(bad[:12])}{' ...' if len(bad) > 12 else ''}; look at "
            "the coefficients, or write a wider --dtype"
        )
