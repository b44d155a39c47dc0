"""Which tensors of several checkpoints can be compared, and what keeps the rest out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.checkpoints.lazy import LazyCheckpoint, TensorInfo

MISSING, SHAPE, DTYPE, PREFIX = "missing", "shape", "dtype", "prefix"
NOT_FINITE, INTEGER = "not finite", "integer"


class Finding(NamedTuple):
    """Something that a merge would stumble over.

    Attributes:
      kind: 'missing', 'shape', 'dtype', 'prefix', 'not finite' or 'integer'.
      tensor: its name; '' if it is about all of a model's.
      detail: what differs, by model.
    """

    kind: str
    tensor: str
    detail: str


class Matched(NamedTuple):
    """The tensors of S checkpoints, side by side.

    Attributes:
      floating: name -> the S tensors, of one shape and floating dtypes.
      integer: name -> the S tensors, of one shape and dtypes without fractions.
      findings: why the others are in neither.
    """

    floating: Mapping[str, Sequence[TensorInfo]]
    integer: Mapping[str, Sequence[TensorInfo]]
    findings: Sequence[Finding]


def match(checkpoints: Mapping[str, LazyCheckpoint]) -> Matched:
    """Pairs the tensors of checkpoints by name and gathers all that does not fit.

    A model that wraps another ('bert.encoder...' beside 'encoder...') is compared
    without the wrapper's name, which is a finding.

    Args:
      checkpoints: label -> S opened checkpoints.
    """
    wrapped: dict[str, list[str]] = {}
    tensors: dict[str, dict[str, TensorInfo]] = {}
    for label, checkpoint in checkpoints.items():
        others = [c.tensors for other, c in checkpoints.items() if other != label]
        wrapper = _wrapper(checkpoint.tensors, others)
        if wrapper:
            wrapped.setdefault(wrapper, []).append(label)
        tensors[label] = {
            name.removeprefix(wrapper): info
            for name, info in checkpoint.tensors.items()
        }
    findings = [
        Finding(
            PREFIX,
            "",
            f"names of {', '.join(labels)} begin with {wrapper!r}, others do not: "
            "compared without it",
        )
        for wrapper, labels in wrapped.items()
    ]
    floating, integer = {}, {}
    for name in dict.fromkeys(name for held in tensors.values() for name in held):
        has = {label: held[name] for label, held in tensors.items() if name in held}
        absent = [label for label in tensors if label not in has]
        if absent:
            where = f"in {', '.join(has)}, not in {', '.join(absent)}"
            findings.append(Finding(MISSING, name, where))
            continue
        infos = list(has.values())
        if len({info.shape for info in infos}) > 1:
            shapes = ", ".join(f"{la} {list(i.shape)}" for la, i in has.items())
            findings.append(Finding(SHAPE, name, shapes))
            continue
        if len({info.dtype for info in infos}) > 1:
            dtypes = ", ".join(f"{la} {i.dtype.name}" for la, i in has.items())
            findings.append(Finding(DTYPE, name, dtypes))
        if all(info.floating for info in infos):
            floating[name] = infos
        elif not any(info.floating for info in infos):
            integer[name] = infos
    return Matched(floating, integer, findings)


def differing_integers(
    checkpoints: Mapping[str, LazyCheckpoint], matched: Matched
) -> list[Finding]:
    """The integer tensors that are not the same in all checkpoints."""
    findings = []
    for name, infos in matched.integer.items():
        pairs = zip(checkpoints.items(), infos, strict=True)
        arrays = {
            label: held.read(info.name).reshape(-1) for (label, held), info in pairs
        }
        first, *rest = arrays
        counts = {label: _different(arrays[label], arrays[first]) for label in rest}
        told = [f"{label} in {n}" for label, n in counts.items() if n]
        if told:
            detail = (
                f"of {arrays[first].size} entries, other than in {first}: "
                f"{', '.join(told)}"
            )
            findings.append(Finding(INTEGER, name, detail))
    return findings


def _different(one: np.ndarray, other: np.ndarray) -> int:
    """Entries that differ; in pieces, as a quantised model's weights are integers."""
    step = 2**20
    return sum(
        int(np.count_nonzero(one[n : n + step] != other[n : n + step]))
        for n in range(0, len(one), step)
    )


def _wrapper(
    names: Mapping[str, TensorInfo], others: Sequence[Mapping[str, TensorInfo]]
) -> str:
    """'bert.' if more names meet those of another model without it; else ''."""
    best, most = "", 0
    for first in dict.fromkeys(name.partition(".")[0] for name in names):
        prefix = f"{first}."
        bare = {name.removeprefix(prefix) for name in names}
        if len(bare) < len(names):
            continue  # two tensors would have one name
        for other in others:
            gain = len(bare & other.keys()) - len(names.keys() & other.keys())
            if gain > most:
                best, most = prefix, gain
    return best
