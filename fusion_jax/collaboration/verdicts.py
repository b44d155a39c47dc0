"""What a screen asks, what it answers, and the limits that it holds to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from fusion_jax.checkpoints.manifests import ContributionManifest

CHECKS: Mapping[str, str] = {
    # Before the download, from the manifest alone.
    "manifest": "it can be read",
    "format": "the files are safetensors by name; a pickle is refused unread",
    "size": "of the files, against the limit and what the store holds",
    "base": "the declared base is one of this repository, by its hash",
    "age": "rounds since that base",
    "tensors": "names, shapes and dtypes are those of the base",
    "head": "no tensor of a head came along",
    "new": "the weights are no base, and went into none",
    # After it, of the file.
    "hash": "SHA-256 and size are what the manifest says",
    "header": "the file's own table is that of the manifest and of the base",
    "statistics": "they are well formed, and of these weights",
    # Of its numbers.
    "finite": "no NaN, no infinity",
    "integers": "buffers are those of the base",
    "constant": "no tensor became constant that is not in the base",
    "changed": "it differs from its base",
    "norm": "||theta - theta_b|| / ||theta_b|| over the whole model",
    # Among the others.
    "duplicate": "nobody else sent these weights, or the same direction",
    "cohort": "no group of tensors went much further than those of the others",
    "probe": "held-out data became no worse",
}
"""Check -> what passes it, in the order in which they are made: the cheapest first."""

PASSED, NOT_RUN = "passed", "not run"


@dataclass(frozen=True)
class Limits:
    """What a screen refuses.

    Attributes:
      max_bytes: of a file of weights; 0 = twice that of the base. Statistics may have
        twice as much.
      max_relative_norm: of ||theta - theta_b|| / ||theta_b||. Weights that have nothing
        to do with the base are at 1 or more, whatever their size; see `delta_checks`
        for what fine-tunes are at.
      min_relative_norm: below it a contribution has not learned anything, and would
        only take a vote.
      deviations: most robust standard deviations of log ||delta|| above the median of
        the cohort, for each group of tensors and for all.
      spread: least standard deviation of log ||delta|| that a cohort is taken to have,
        so that a cohort of equals does not refuse who has more data: with 0.3 and 6
        deviations six times the median passes.
      harmless: a group that went no further than this share of its base's norm is not
        compared: who has more data or a higher rate goes further, and is honest (a
        table is in `delta_checks`).
      min_cohort: contributions from which on a cohort says anything.
      max_age: rounds that a contribution may be late.
      probe_drop: how much lower than its base's the probe of a contribution may be.
    """

    max_bytes: int = 0
    max_relative_norm: float = 0.5
    min_relative_norm: float = 1e-6
    deviations: float = 6.0
    spread: float = 0.3
    harmless: float = 0.1
    min_cohort: int = 5
    max_age: int = 3
    probe_drop: float = 0.1


def check_limits(limits: Limits) -> None:
    """Refuses limits that are no numbers, or none that anything could keep.

    Raises:
      ValueError: all that are wrong.
    """
    wrong = []
    for entry in fields(Limits):
        value, whole = getattr(limits, entry.name), entry.type is int
        number = isinstance(value, int if whole else (int, float))
        if not number or isinstance(value, bool) or not math.isfinite(value):
            kind = "whole number" if whole else "finite number"
            wrong.append(f"{entry.name}: {value!r} is no {kind}")
        elif value < 0:
            wrong.append(f"{entry.name}: {value} is below 0")
    if wrong:
        raise ValueError(f"limits of the screen: {'; '.join(wrong)}")


@dataclass(frozen=True)
class Candidate:
    """A contribution as a screen sees it.

    Attributes:
      name: of its manifest in the repository.
      manifest: what it says; None where it cannot be read.
      manifest_sha256: of that object's bytes; decides between duplicates.
      fault: why the manifest cannot be read.
      stored_bytes: size of its weights in the store; None where nobody looked, -1
        where there is no such object.
      file: its weights, downloaded; None before.
      statistics: its statistics, downloaded; None before, or where it has none.
    """

    name: str
    manifest: ContributionManifest | None
    manifest_sha256: str
    fault: str = ""
    stored_bytes: int | None = None
    file: Path | None = None
    statistics: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """What a screen says of a contribution.

    Attributes:
      accepted: whether nothing failed.
      reasons: why not, each one a sentence.
      checks: of `CHECKS` -> 'passed', 'failed: why' or 'not run'; all of them.
      numbers: measured: 'relative_norm', 'robust_z', 'largest_group_z', 'probe',
        'probe_base', 'seconds'; those that are there and finite.
    """

    accepted: bool
    reasons: tuple[str, ...] = ()
    checks: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class Findings:
    """A verdict in the making."""

    def __init__(self, before: Verdict | None = None) -> None:
        """Begins with nothing run, or goes on from a verdict."""
        self.checks = dict.fromkeys(CHECKS, NOT_RUN)
        self.numbers: dict[str, float] = {}
        self.reasons: list[str] = []
        if before is not None:
            self.checks |= before.checks
            self.numbers |= before.numbers
            self.reasons += before.reasons

    @property
    def fine(self) -> bool:
        """Whether nothing failed so far."""
        return not self.reasons

    def passed(self, check: str) -> None:
        """Notes that a check was passed."""
        self.checks[check] = PASSED

    def failed(self, check: str, why: str) -> None:
        """Notes why a check was not passed."""
        self.checks[check] = f"failed: {why}"
        self.reasons.append(f"{check}: {why}")

    def judge(self, check: str, faults: list[str]) -> None:
        """Notes a check that is passed if there are no faults."""
        if not faults:
            self.passed(check)
            return
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        self.failed(check, "; ".join(faults[:8]) + more)

    def left_out(self, check: str, why: str) -> None:
        """Notes why a check was not run."""
        self.checks[check] = f"{NOT_RUN}: {why}"

    def measured(self, name: str, value: float) -> None:
        """Keeps a number, if it is one that JSON can say."""
        if math.isfinite(value):
            self.numbers[name] = float(value)

    def verdict(self) -> Verdict:
        """The verdict as it stands."""
        return Verdict(
            self.fine, tuple(self.reasons), dict(self.checks), dict(self.numbers)
        )
