"""A round ends: contributions are screened, fused and promoted to the next base."""

import logging
import time
from dataclasses import asdict

from fusion_jax.checkpoints import manifests
from fusion_jax.checkpoints.manifests import BaseManifest, Rejected, TensorFile
from fusion_jax.checkpoints.object_files import described
from fusion_jax.collaboration import layout, marks
from fusion_jax.collaboration.fused_base import fuse_contributions
from fusion_jax.collaboration.fusing import FuseOptions, check
from fusion_jax.collaboration.repository import Found, Repository
from fusion_jax.collaboration.screening import Limits, Probe
from fusion_jax.collaboration.store import StoreError
from fusion_jax.collaboration.verdicts import check_limits
from fusion_jax.collaboration.waiting import Screened, screen_all, waiting_for

logger = logging.getLogger(__name__)


class NotReady(ValueError):
    """Too few contributions have been accepted yet; says how many are waiting."""


def fuse_round(
    repository: Repository,
    options: FuseOptions | None = None,
    *,
    limits: Limits | None = None,
    quorum: int = 1,
    deadline: float | None = None,
    probe: Probe | None = None,
    poll: float | None = None,
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
      poll: seconds between two looks; default a hundredth of the deadline, from 2 to
        60.

    Returns:
      The manifest of the new base.

    Raises:
      NotReady: the quorum is not there and there is no deadline, or at the deadline
        nothing could be accepted.
      RepositoryError, StoreError: an object is damaged or gone, or the store is.
    """
    options, limits = options or FuseOptions(), limits or Limits()
    check(options)
    check_limits(limits)
    if quorum < 1:
        raise ValueError(f"quorum: {quorum}; at least 1 contribution makes a base")
    began = time.monotonic()
    parent = repository.current()
    screened, known = None, None
    while True:
        if repository.current().round > parent.round:
            logger.info("another fuser has ended the round meanwhile")
            return repository.base(parent.round + 1)
        waiting = waiting_for(repository, parent)
        names = [found.name for found in waiting]
        # What was deferred is looked at anew each time.
        if screened is None or names != known or screened.deferred:
            known = names
            screened = screen_all(repository, parent, waiting, limits, options, probe)
        enough = len(screened.accepted)
        over = deadline is not None and time.monotonic() - began >= deadline
        if enough >= quorum or (over and enough):
            break
        if deadline is None or over:
            raise NotReady(_why_not(repository, parent, screened, quorum))
        left = deadline - (time.monotonic() - began)
        time.sleep(min(_pause(deadline) if poll is None else poll, max(0.0, left)))
    seconds = {"screen": time.monotonic() - began}
    return _promote(repository, parent, screened, options, limits, seconds)


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
            for name, verdict in screened.rejected.items()
        ),
        verdicts={name: asdict(v) for name, v in sorted(screened.verdicts.items())},
        operator={**asdict(options), "screen": asdict(limits)},
        clipped=fused.clipped,
        notes=made.notes,
        optimizer=state,
        memory=fused.memory,
        seconds=seconds,
        **marks.signature(),
    )
    name = layout.base_manifest(round_)
    if not repository.store.put_if_absent(name, manifests.dump(base)):
        logger.info("another fuser was first to promote base %d", round_)
    try:
        marks.advance(repository.store, round_)
    except StoreError as error:
        # The base is promoted; without the hint others only look longer for it.
        logger.warning("the hint of the newest round was not moved: %s", error)
    return repository.base(round_)


def _contributor(found: Found) -> str:
    return "" if found.manifest is None else found.manifest.contributor


def _why_not(
    repository: Repository, parent: BaseManifest, screened: Screened, quorum: int
) -> str:
    accepted = len(screened.accepted)
    refused = [
        f"{name}: {'; '.join(verdict.reasons)}"
        for name, verdict in screened.rejected.items()
    ]
    refused += [f"{name}: {why}" for name, why in screened.deferred.items()]
    lines = [
        f"{repository.url}: round {parent.round} has {accepted} contributions that can "
        f"be fused and {len(refused)} that cannot; {quorum} are needed: wait for more, "
        "or lower --quorum"
    ]
    return "\n  ".join(lines + refused)


def _pause(deadline: float) -> float:
    return min(60.0, max(2.0, deadline / 100))
