"""How far checkpoints are from each other and from their base, read before a merge."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fusion_jax.checkpoints.inspection.groups import layers_of
from fusion_jax.checkpoints.inspection.matching import (
    NOT_FINITE,
    Finding,
    Matched,
    differing_integers,
    match,
)
from fusion_jax.checkpoints.inspection.result import Inspection, from_sums
from fusion_jax.checkpoints.inspection.sums import Sums, nothing, sums_of
from fusion_jax.checkpoints.lazy import LazyCheckpoint, open_checkpoint
from fusion_jax.checkpoints.tensors import CheckpointError

CHUNK = 2**17
"""Elements read at once: K + 1 rows of them in float64 are all that a thread holds.
Eight times as many are slower, as they leave the processor's cache."""

TOTAL = "total"

_BASE = "the base"
_log = logging.getLogger(__name__)


def inspect(
    models: Sequence[Path],
    base: Path | None = None,
    *,
    by: str = "layer",
    threads: int = 2,
) -> Inspection:
    """cos_ij = <d_i, d_j> / |d_i| |d_j|, |d_k| / |r|, and signs, by group of tensors.

    d_k = w_k - r, where r is the base, or the mean of the models without one. Files
    are read in chunks of 2^17 elements; differences, products and sums are float64.

    Args:
      models: K folders of any architecture; one is enough where there is a base.
      base: what they were fine-tuned from, or None.
      by: 'layer' or 'tensor'.
      threads: chunks that are read at once.

    Raises:
      CheckpointError: a folder cannot be opened, or no tensor can be compared.
      ValueError: one model and no base, or an unknown word for `by`.
    """
    if by not in ("layer", "tensor"):
        raise ValueError(f"by={by!r} is neither 'layer' nor 'tensor'")
    if len(models) + (base is not None) < 2:
        raise ValueError("nothing to compare with: give a base or a second model")
    labels = labels_of(models)
    opened = {
        label: open_checkpoint(path) for label, path in zip(labels, models, strict=True)
    }
    held = opened | ({} if base is None else {_BASE: open_checkpoint(base)})
    matched = match(held)
    findings = [*matched.findings, *differing_integers(held, matched)]
    groups = layers_of(list(matched.floating))
    if by == "tensor":
        groups = {name: name for name in groups}
    sums: dict[str, Sums] = {}
    compared = []
    for name, found in _stream(held, matched, groups, len(models), threads):
        if found.bad.any():
            bad = zip(held, found.bad, strict=False)
            told = ", ".join(f"{label} {n}" for label, n in bad if n)
            detail = f"NaN or infinity, of {found.size} entries: {told}; left out"
            findings.append(Finding(NOT_FINITE, name, detail))
            continue
        group = groups[name]
        sums[group] = sums.get(group, nothing(len(models))) + found
        compared.append(name)
    if not compared:
        raise CheckpointError(_why_nothing(held, findings))
    total = sum(sums.values(), start=nothing(len(models)))
    infos = [
        info for name in compared for info in matched.floating[name][: len(models)]
    ]
    return from_sums(
        {**sums, TOTAL: total},
        models=dict(zip(labels, models, strict=True)),
        base=base,
        by=by,
        tensors=len(compared),
        dtypes=sorted({info.dtype.name for info in infos}),
        findings=findings,
    )


def labels_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart.

    A folder that is given twice has a number behind its name.
    """
    parts = [Path(os.path.abspath(folder)).parts[1:] or ("/",) for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(set(parts)):
            break
    seen: dict[str, int] = {}
    for place, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            labels[place] = f"{label} ({seen[label]})"
    return labels


def _stream(
    held: Mapping[str, LazyCheckpoint],
    matched: Matched,
    order: Iterable[str],
    count: int,
    threads: int,
) -> Iterator[tuple[str, Sums]]:
    """Yields (tensor, its sums), tensors in order; chunks are added in order too."""
    pieces = [
        (name, start)
        for name in order
        for start in range(0, matched.floating[name][0].size, CHUNK)
    ]
    gigabytes = sum(checkpoint.num_bytes for checkpoint in held.values()) / 1e9
    _log.info("%.2f GB in %d tensors to read", gigabytes, len(matched.floating))

    def work(piece: tuple[str, int]) -> tuple[str, Sums]:
        name, start = piece
        rows = [
            checkpoint.read(info.name).reshape(-1)[start : start + CHUNK]
            for checkpoint, info in zip(
                held.values(), matched.floating[name], strict=True
            )
        ]
        return name, sums_of(rows[:count], rows[count] if rows[count:] else None)

    # numpy lets go of the interpreter, so two chunks are read and added at once.
    pool = ThreadPoolExecutor(threads)
    try:
        done = pool.map(work, pieces)
        for name, parts in itertools.groupby(done, key=lambda pair: pair[0]):
            yield name, sum((part for _, part in parts), start=nothing(count))
    finally:
        pool.shutdown(cancel_futures=True)


def _why_nothing(
    held: Mapping[str, LazyCheckpoint], findings: Sequence[Finding]
) -> str:
    """The first names of each and the first findings: what the reader can look at."""
    names = "; ".join(
        f"{label} ({checkpoint.directory}): {', '.join(list(checkpoint.tensors)[:3])}"
        f"{' ...' if len(checkpoint.tensors) > 3 else ''}"
        for label, checkpoint in held.items()
    )
    told = "; ".join(
        f"{finding.tensor} {finding.kind} ({finding.detail})"
        for finding in findings[:6]
    )
    more = f"; {len(findings) - 6} more" if len(findings) > 6 else ""
    return (
        f"no tensor can be compared. Names: {names}. Found: {told}{more}. Models that "
        "are merged need the same architecture"
    )
