"""Contributions that wait for a fuse, and what the screen says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fusion_jax.checkpoints.manifests import BaseManifest, ContributionManifest
from fusion_jax.checkpoints.statistics_file import read_statistics
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration.fuse_options import FuseOptions
from fusion_jax.collaboration.repository import Found, Repository, RepositoryError
from fusion_jax.collaboration.screening import (
    Candidate,
    Limits,
    Probe,
    Verdict,
    early,
    screen,
)


@dataclass(frozen=True)
class Screened:
    """The contributions that wait, each in one of three states.

    Attributes:
      found: name of the manifest -> contribution.
      verdicts: name -> verdict, of those that are taken or rejected now.
      deferred: name -> why it goes on waiting: what is the matter with it may pass (an
        object that cannot be read, a manifest for a newer version).
    """

    found: Mapping[str, Found]
    verdicts: Mapping[str, Verdict]
    deferred: Mapping[str, str]

    @property
    def accepted(self) -> list[str]:
        """Names of those that may be fused."""
        return [name for name, verdict in self.verdicts.items() if verdict.accepted]

    @property
    def rejected(self) -> dict[str, Verdict]:
        """Those that are not taken, now and for good."""
        return {
            n: verdict for n, verdict in self.verdicts.items() if not verdict.accepted
        }


def waiting_for(repository: Repository, parent: BaseManifest) -> list[Found]:
    """Contributions that no base up to `parent` has taken or rejected."""
    known = set()
    for round_ in range(parent.round + 1):
        base = repository.base(round_)
        known.update(part.manifest for part in base.parts)
        known.update(rejected.manifest for rejected in base.rejected)
    return [
        found
        for found in repository.contributions(known=known)
        if found.manifest is None or found.manifest.base.round <= parent.round
    ]


def screen_all(
    repository: Repository,
    parent: BaseManifest,
    waiting: Sequence[Found],
    limits: Limits,
    options: FuseOptions,
    probe: Probe | None = None,
) -> Screened:
    """Looks at manifests, then into the files of those that pass.

    Args:
      repository: where they lie.
      parent: the base that the next one follows.
      waiting: contributions.
      limits: of the screen.
      options: of the fuse, whose method may read statistics.
      probe: `(file) -> score` on held-out data; None without.
    """
    history = {round_: repository.base(round_) for round_ in range(parent.round + 1)}
    candidates: list[Candidate] = []
    verdicts: dict[str, Verdict] = {}
    deferred: dict[str, str] = {}
    for found in waiting:
        if found.newer:
            deferred[found.name] = found.fault
            continue
        verdict, candidate = _early(repository, found, history, parent, limits)
        verdicts[found.name] = verdict
        if not verdict.accepted or found.manifest is None:
            continue
        try:
            candidate = _downloaded(repository, candidate, found.manifest)
        except RepositoryError as error:
            deferred[found.name] = str(error)
            del verdicts[found.name]
        else:
            candidates.append(candidate)
    verdicts |= screen(
        candidates,
        lambda round_: repository.fetch(history[round_].weights),
        limits,
        probe,
        before={candidate.name: verdicts[candidate.name] for candidate in candidates},
    )
    if options.needs_statistics:
        for candidate in candidates:
            why = _unread(candidate, options.method)
            if why and verdicts[candidate.name].accepted:
                verdicts[candidate.name] = _refused(verdicts[candidate.name], why)
    return Screened({found.name: found for found in waiting}, verdicts, deferred)


def _early(
    repository: Repository,
    found: Found,
    history: Mapping[int, BaseManifest],
    parent: BaseManifest,
    limits: Limits,
) -> tuple[Verdict, Candidate]:
    """The verdict by the manifest; only of one that is in order objects are sought."""
    candidate = Candidate(found.name, found.manifest, found.sha256, found.fault)
    verdict = early(candidate, history, parent.round, limits)
    if verdict.accepted and found.manifest is not None:
        size = repository.store.size(found.manifest.weights.name)
        # One that is not there may yet come; the download says so.
        if size is not None:
            candidate = replace(candidate, stored_bytes=size)
            verdict = early(candidate, history, parent.round, limits)
    return verdict, candidate


def _downloaded(
    repository: Repository, candidate: Candidate, manifest: ContributionManifest
) -> Candidate:
    statistics = None
    if manifest.statistics is not None:
        statistics = repository.fetch(manifest.statistics)
    weights = repository.fetch(manifest.weights)
    return replace(candidate, file=weights, statistics=statistics)


def _unread(candidate: Candidate, method: str) -> str:
    """Why a method that reads statistics cannot read a contribution's; '' if it can."""
    wanted = "fisher" if method == "fisher" else "gram"
    advice = f"contribute with --statistics {wanted}"
    if candidate.statistics is None:
        return f"it came without statistics, which {method} reads; {advice}"
    try:
        kind = read_statistics(candidate.statistics).manifest.kind
    except CheckpointError as error:
        return str(error)
    if kind != wanted:
        return f"its statistics are of kind {kind}, {method} reads {wanted}; {advice}"
    return ""


def _refused(verdict: Verdict, why: str) -> Verdict:
    checks = {**verdict.checks, "statistics": f"failed: {why}"}
    return replace(
        verdict, accepted=False, reasons=(f"statistics: {why}",), checks=checks
    )
