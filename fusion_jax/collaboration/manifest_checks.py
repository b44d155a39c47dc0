"""Checks of a contribution before its weights are downloaded."""

from collections.abc import Mapping
from typing import Any

from fusion_jax.checkpoints.inspection.groups import HEAD, layers_of
from fusion_jax.checkpoints.manifests import (
    BaseManifest,
    BaseReference,
    ContributionManifest,
    TensorFile,
)
from fusion_jax.collaboration.contributions import table_differences
from fusion_jax.collaboration.verdicts import Candidate, Findings, Limits

SUFFIX = ".safetensors"
ABSENT = -1
"""Size of an object that is not there."""

_LONGEST = 500  # letters of a tensor's name: words are looked for in it


def check_manifest(
    findings: Findings,
    candidate: Candidate,
    history: Mapping[int, BaseManifest],
    round_: int,
    limits: Limits,
) -> None:
    """Makes all checks that need the manifest alone.

    Args:
      findings: where they are noted.
      candidate: whose manifest may be anybody's work: nothing of it is believed.
      history: round -> manifest of the base, of the line that is fused.
      round_: of the base that is fused.
      limits: size and age.
    """
    manifest = candidate.manifest
    fault = candidate.fault or _incomplete(manifest)
    findings.judge("manifest", [fault] if fault else [])
    if fault or manifest is None:
        return
    files = {"weights": manifest.weights}
    if manifest.statistics is not None:
        files["statistics"] = manifest.statistics
    findings.judge(
        "format",
        [
            f"{what} are '{file.name}', only {SUFFIX} is opened: a pickle could run "
            "code; convert it"
            for what, file in files.items()
            if not file.name.endswith(SUFFIX)
        ],
    )
    most = limits.max_bytes or 2 * history[round_].weights.bytes
    findings.judge("size", _size_faults(candidate, files, most))
    own = _check_base(findings, manifest.base, history, round_)
    age = round_ - manifest.base.round
    findings.judge(
        "age",
        [f"{age} rounds old, at most {limits.max_age} are taken"]
        if age > limits.max_age
        else [],
    )
    # Bases of one line are alike: of an unknown one the current tells as much.
    base = history[round_] if own is None else own
    _check_tensors(findings, manifest.weights.tensors, base.weights.tensors)
    findings.judge("new", _known_faults(manifest.weights.sha256, history, round_))


def _incomplete(manifest: ContributionManifest | None) -> str:
    """What a manifest lacks that was read; every field may be null in a file."""
    if manifest is None:
        return "it is missing"
    lacks = [
        name
        for name, kind in (("base", BaseReference), ("weights", TensorFile))
        if not isinstance(getattr(manifest, name), kind)
    ]
    return f"{' and '.join(lacks)} missing" if lacks else ""


def _size_faults(
    candidate: Candidate, files: Mapping[str, TensorFile], most: int
) -> list[str]:
    limit = {"weights": most, "statistics": 2 * most}
    found = [
        f"{what} are said to have {file.bytes} bytes, from 1 to {limit[what]} are taken"
        for what, file in files.items()
        if not 0 < file.bytes <= limit[what]
    ]
    stored, said = candidate.stored_bytes, files["weights"].bytes
    if stored == ABSENT:
        found.append(f"there are no weights '{files['weights'].name}' in the store")
    elif stored is not None and stored != said:
        found.append(f"the store holds {stored} bytes of weights, the manifest {said}")
    return found


def _check_base(
    findings: Findings,
    declared: BaseReference,
    history: Mapping[int, BaseManifest],
    round_: int,
) -> BaseManifest | None:
    """The declared base, if there is such a one."""
    own = history.get(declared.round) if 0 <= declared.round <= round_ else None
    if own is None:
        findings.failed(
            "base",
            f"it began from base {declared.round}, which is none of 0 to {round_} here",
        )
        return None
    if own.weights.sha256 != declared.sha256:
        findings.failed(
            "base",
            f"it began from a base {declared.round} of SHA-256 "
            f"{str(declared.sha256)[:12]}, here that is {own.weights.sha256[:12]}: "
            "another repository or a fork",
        )
        return None
    findings.passed("base")
    return own


def _check_tensors(findings: Findings, said: Any, wanted: Mapping[str, Any]) -> None:
    held = table_said(said)
    if held is None:
        findings.failed("tensors", "the manifest does not say dtypes and shapes")
        return
    wanted = table_said(wanted) or {}
    heads = [
        name for name in held if name not in wanted and layers_of([name])[name] == HEAD
    ]
    body = {name: entry for name, entry in held.items() if name not in heads}
    findings.judge("tensors", table_differences(wanted, body))
    findings.judge(
        "head",
        [f"{name} is of a head, which stays with its contributor" for name in heads],
    )


def table_said(said: Any) -> dict[str, list[Any]] | None:
    """Tensor -> [dtype, shape], from what a manifest says; None if it is no table."""
    if not isinstance(said, Mapping):
        return None
    found = {}
    for name, entry in said.items():
        if not (isinstance(entry, list | tuple) and len(entry) == 2):
            return None
        if len(name) > _LONGEST:
            return None
        dtype, shape = entry
        if not isinstance(dtype, str) or not isinstance(shape, list | tuple):
            return None
        found[str(name)] = [dtype, list(shape)]
    return found


def _known_faults(
    sha256: str, history: Mapping[int, BaseManifest], round_: int
) -> list[str]:
    found = []
    for number, base in sorted(history.items()):
        if number > round_:
            continue
        if base.weights.sha256 == sha256:
            found.append(f"it is base {number}, unchanged")
        if any(part.sha256 == sha256 for part in base.parts):
            found.append(f"the same weights went into base {number} already")
    return found
