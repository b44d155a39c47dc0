"""Checks of a downloaded file: its hash, its header, its statistics."""

import struct
from pathlib import Path

from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.checkpoints.object_files import file_sha256, table
from fusion_jax.checkpoints.statistics_check import NEEDED, checked_statistics
from fusion_jax.checkpoints.statistics_file import read_statistics
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration.contributions import table_differences
from fusion_jax.collaboration.manifest_checks import table_said
from fusion_jax.collaboration.verdicts import Candidate, Findings
from fusion_jax.collaboration.weights_file import Weights, open_weights


def check_file(
    findings: Findings, candidate: Candidate, base: Weights
) -> Weights | None:
    """Compares a file with its manifest and with its base.

    Args:
      findings: where the checks are noted.
      candidate: with its file.
      base: that it says it began from.

    Returns:
      The file, if its header is that of the base, so that numbers can be compared.
    """
    assert candidate.manifest is not None and candidate.file is not None
    said = candidate.manifest.weights
    findings.judge("hash", _hash_faults(candidate.file, said.sha256, said.bytes))
    try:
        weights = open_weights(candidate.file)
        faults = _layout_faults(weights)
    # What a header says may be any JSON: numbers without end, nested without end.
    except (CheckpointError, OverflowError, RecursionError) as error:
        findings.failed("header", str(error).replace(str(candidate.file), "the file"))
        return None
    held = table(weights.tensors)
    if held != table_said(said.tensors):
        faults.append("the manifest's table of tensors is not that of the file")
    differs = table_differences(table(base.tensors), held)
    findings.judge("header", faults + differs)
    return None if differs else weights


def check_statistics(findings: Findings, candidate: Candidate) -> None:
    """Looks whether a file of statistics can be read and is of these weights.

    Its form alone is checked: finite, of the right shapes, of these weights. A Gram
    that is louder than the data were is not recognised.
    """
    assert candidate.manifest is not None and candidate.file is not None
    said, file = candidate.manifest.statistics, candidate.statistics
    if said is None:
        findings.left_out("statistics", "it came without any")
        return
    if file is None:
        findings.left_out("statistics", "they were not downloaded")
        return
    faults = _hash_faults(file, said.sha256, said.bytes)
    try:
        kind = read_statistics(file).manifest.kind
        method = next((m for m, wanted in NEEDED.items() if wanted == kind), "regmean")
        weights = open_weights(candidate.file)
        model = LazyCheckpoint(candidate.file.parent, weights.tensors)
        checked_statistics(method, {"the contribution": model}, [file])
    except (CheckpointError, OverflowError, RecursionError) as error:
        faults.append(str(error).replace(str(file), "the file"))
    findings.judge("statistics", faults)


def _hash_faults(file: Path, sha256: str, size: int) -> list[str]:
    held = file.stat().st_size
    if held != size:
        return [f"the file has {held} bytes, the manifest says {size}"]
    digest = file_sha256(file)
    if digest != sha256:
        return [
            f"the file has SHA-256 {digest[:12]}, the manifest says "
            f"{str(sha256)[:12]}: it was damaged or replaced"
        ]
    return []


def _layout_faults(weights: Weights) -> list[str]:
    """Bytes that belong to no tensor, or to two."""
    with weights.file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
    place = 8 + length
    for info in weights.tensors.values():
        if info.offset != place:
            return [f"{info.name} does not follow the tensor before it"]
        place += info.num_bytes
    size = weights.file.stat().st_size
    return [f"{size - place} bytes belong to no tensor"] if size != place else []
