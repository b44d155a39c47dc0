"""A round ends: contributions are screened, fused and promoted to the next base."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from fusion_jax.checkpoints import manifests
from fusion_jax.checkpoints.manifests import (
    BaseManifest,
    ContributionManifest,
    Rejected,
    TensorFile,
)
from fusion_jax.checkpoints.object_files import described
from fusion_jax.collaboration import layout, marks
from fusion_jax.collaboration.fused_base import fuse_contributions
from fusion_jax.collaboration.fusing import FuseOptions, check
from fusion_jax.collaboration.repository import Found, Repository, RepositoryError
from fusion_jax.collaboration.screening import (
    Candidate,
    Limits,
    Probe,
    Verdict,
    early,
    screen,
)

logger = logging.getLogger(__name__)

POLL = 2.0  # seconds between two looks at a round that is not complete


class NotReady(ValueError):
    """Too few contributions have been accepted yet; says how many are waiting."""


@dataclass(frozen=True)
class Screened:
    """The contributions that wait for a fuse, and what the screen says of them.

    Attributes:
      found: name of the manifest -> contribution.
      verdicts: name -> verdict, of all.
    """

    found: Mapping[str, Found]
    verdicts: Mapping[str, Verdict]

    @property
    def accepted(self) -> list[str]:
        """Names of those that may be fused."""
        return [name for name, verdict in self.verdicts.items() if verdict.accepted]


def fuse_round(
    repository: Repository,
    options: FuseOptions | None = None,
    *,
    limits: Limits | None = None,
    quorum: int = 1,
    deadline: float | None = None,
    probe: Probe | None = None,
    poll: float = POLL,
) -> BaseManifest:
    """Screens and fuses what waits, and promotes the result to the next base.

    theta_{i+1} = theta_i + alpha sum_c v_c (theta^c - theta_b(c)) / sum_c v_c,
    by default the mean of the contributions (alpha = 1, v_c = 1, b(c) = i)

    The result depends on the set of contributions alone. Of several fusers at once one
    promotes, and all return what it promoted; one that is killed leaves nothing that
    counts.

    Args:
      repository: with contributions.
      options: how to fuse; default the mean.
      limits: of the screen.
      quorum: contributions that must be accepted.
      deadline: seconds, by this machine's clock, after which fewer will do; until
        then the quorum is waited for. None = what is there now is the quorum or not.
      probe: `(file) -> score` on held-out data, higher is better.
      poll: seconds between two looks.

    Returns:
      The manifest of the new base.

    Raises:
      NotReady: the quorum is not there and there is no deadline, or at the deadline
        nothing could be accepted.
      RepositoryError, StoreError: an object is damaged or gone, or the store is.
    """
    options, limits = options or FuseOptions(), limits or Limits()
    check(options)
    if quorum < 1:
        raise ValueError(f"quorum: {quorum}; at least 1 contribution makes a base")
    began = time.monotonic()
    parent = repository.current()
    screened, known = None, None
    while True:
        waiting = waiting_for(repository, parent)
        names = [found.name for found in waiting]
        if screened is None or names != known:
            known = names
            screened = screen_all(repository, parent, waiting, limits, probe)
        enough = len(screened.accepted)
        over = deadline is not None and time.monotonic() - began >= deadline
        if enough >= quorum or (over and enough):
            break
        if deadline is None or over:
            raise NotReady(_why_not(repository, parent, screened, quorum))
        time.sleep(min(poll, max(0.0, deadline - (time.monotonic() - began))))
    seconds = {"screen": time.monotonic() - began}
    return _promote(repository, parent, screened, options, limits, seconds)


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
    probe: Probe | None = None,
) -> Screened:
    """Looks at manifests, then into the files of those that pass.

    Args:
      repository: where they lie.
      parent: the base that the next one follows.
      waiting: contributions.
      limits: of the screen.
      probe: as in `fuse_round`.
    """
    history = {round_: repository.base(round_) for round_ in range(parent.round + 1)}
    candidates, passed = [], {}
    verdicts: dict[str, Verdict] = {}
    for found in waiting:
        candidate = Candidate(found.name, found.manifest, found.sha256, found.fault)
        if found.manifest is not None:
            size = repository.store.size(found.manifest.weights.name)
            candidate = replace(candidate, stored_bytes=-1 if size is None else size)
        verdict = early(candidate, history, parent.round, limits)
        verdicts[found.name] = verdict
        if not verdict.accepted or found.manifest is None:
            continue
        try:
            candidate = _downloaded(repository, candidate, found.manifest)
        except RepositoryError as error:
            verdicts[found.name] = replace(
                verdict, accepted=False, reasons=(str(error),)
            )
        else:
            candidates.append(candidate)
            passed[found.name] = verdict
    verdicts |= screen(
        candidates,
        lambda round_: repository.fetch(history[round_].weights),
        limits,
        probe,
        before=passed,
    )
    return Screened({found.name: found for found in waiting}, verdicts)


def _downloaded(
    repository: Repository, candidate: Candidate, manifest: ContributionManifest
) -> Candidate:
    statistics = None
    if manifest.statistics is not None:
        statistics = repository.fetch(manifest.statistics)
    weights = repository.fetch(manifest.weights)
    return replace(candidate, file=weights, statistics=statistics)


def _promote(
    repository: Repository,
    parent: BaseManifest,
    screened: Screened,
    options: FuseOptions,
    limits: Limits,
    seconds: dict[str, float],
) -> BaseManifest:
    """Fuses what was accepted and creates the next base's manifest, or finds it."""
    round_ = parent.round + 1
    accepted = [screened.found[name] for name in screened.accepted]
    with repository.scratch() as place:
        made = fuse_contributions(repository, parent, accepted, options, place)
        began = time.monotonic()
        fused = made.fused
        weights = TensorFile(
            layout.base_file(round_, fused.sha256),
            fused.sha256,
            fused.bytes,
            fused.tensors,
        )
        repository.store.upload(made.file, weights.name)
        state = None
        if made.state is not None:
            state = described(made.state, layout.base_folder(round_), ".optimizer")
            repository.store.upload(made.state, state.name)
    seconds |= {**fused.seconds, "upload": time.monotonic() - began}
    base = BaseManifest(
        round=round_,
        weights=weights,
        parent=parent.reference,
        parts=made.parts,
        rejected=tuple(
            Rejected(
                name,
                screened.found[name].sha256,
                _contributor(screened.found[name]),
                verdict.reasons,
            )
            for name, verdict in screened.verdicts.items()
            if not verdict.accepted
        ),
        verdicts={name: asdict(v) for name, v in sorted(screened.verdicts.items())},
        operator={**asdict(options), "screen": asdict(limits)},
        optimizer=state,
        memory=fused.memory,
        seconds=seconds,
        **marks.signature(),
    )
    name = layout.base_manifest(round_)
    if not repository.store.put_if_absent(name, manifests.dump(base)):
        logger.info("another fuser was first to promote base %d", round_)
    marks.advance(repository.store, round_)
    return repository.base(round_)


def _contributor(found: Found) -> str:
    return "" if found.manifest is None else found.manifest.contributor


def _why_not(
    repository: Repository, parent: BaseManifest, screened: Screened, quorum: int
) -> str:
    accepted = len(screened.accepted)
    refused = [
        f"{name}: {'; '.join(verdict.reasons)}"
        for name, verdict in screened.verdicts.items()
        if not verdict.accepted
    ]
    lines = [
        f"{repository.url}: round {parent.round} has {accepted} contributions that can "
        f"be fused and {len(refused)} that cannot; {quorum} are needed: wait for more, "
        "or lower --quorum"
    ]
    return "\n  ".join(lines + refused)
