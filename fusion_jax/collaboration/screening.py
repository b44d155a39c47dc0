"""The screen: which contributions may go into the next base, and why not.

It stops crashed, stale, doubled, foreign, diverged or careless contributions, and files
that would harm who opens them. It does not stop somebody who wants to harm: signs that
are flipped, or a backdoor that is trained in, have the size of honest work and pass. A
probe may see the first, and no check sees the second. Contributions that one party
sends under many names count as many.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fusion_jax.checkpoints.manifests import BaseManifest
from fusion_jax.collaboration.cohort_checks import Peer, check_cohort, check_duplicates
from fusion_jax.collaboration.delta_checks import Way, check_numbers
from fusion_jax.collaboration.file_checks import check_file, check_statistics
from fusion_jax.collaboration.manifest_checks import check_manifest
from fusion_jax.collaboration.verdicts import (
    NOT_RUN,
    PASSED,
    Candidate,
    Findings,
    Limits,
    Verdict,
)
from fusion_jax.collaboration.weights_file import open_weights

__all__ = ["Candidate", "Limits", "Verdict", "early", "screen"]

Probe = Callable[[Path], float]
"""A file of weights -> how good it is on held-out data; higher is better."""


def early(
    candidate: Candidate,
    history: Mapping[int, BaseManifest],
    round_: int,
    limits: Limits,
) -> Verdict:
    """Judges a contribution by its manifest, before anything of it is downloaded.

    Args:
      candidate: without files.
      history: round -> manifest of the base, of the line that is fused; of all rounds
        up to `round_`, so that what went in once is recognised.
      round_: of the base that is fused.
      limits: size and age.

    Returns:
      What the first eight of `verdicts.CHECKS` say; the others are not run.
    """
    findings = Findings()
    check_manifest(findings, candidate, history, round_, limits)
    return findings.verdict()


def screen(
    candidates: Sequence[Candidate],
    bases: Callable[[int], Path],
    limits: Limits,
    probe: Probe | None = None,
    *,
    before: Mapping[str, Verdict] | None = None,
) -> dict[str, Verdict]:
    """Judges downloaded contributions, each alone and then against the others.

    Every check of a contribution that can be made is made and noted, also after
    another failed; only whoever passed all of its own is compared with others, and
    only whoever is left is probed. Files are read piece by piece: memory does not grow
    with their size or number. The order of `candidates` does not matter.

    Args:
      candidates: with their files; those that `early` refused may be among them.
      bases: round -> file of that base's weights.
      limits: what is refused.
      probe: asked for whoever is left, and for their bases; None asks nobody.
      before: name of a candidate -> verdict of `early`, which is gone on with.

    Returns:
      Name of a candidate -> verdict, in the order of names. Its numbers beside
      'seconds' are the same whenever it is made.

    Raises:
      ValueError: two candidates of one name.
      CheckpointError: a base that cannot be read.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.name)
    found = {
        candidate.name: Findings((before or {}).get(candidate.name))
        for candidate in ordered
    }
    if len(found) != len(ordered):
        raise ValueError("screen: two candidates have one name")
    seconds = dict.fromkeys(found, 0.0)
    peers = []
    for candidate in ordered:
        started = time.monotonic()
        findings = found[candidate.name]
        way = _alone(findings, candidate, bases, limits)
        if way is not None and findings.fine and candidate.manifest is not None:
            sha256 = candidate.manifest.weights.sha256
            mark = candidate.manifest_sha256
            peers.append(Peer(candidate.name, mark, sha256, way, findings))
        seconds[candidate.name] += time.monotonic() - started
    peers = check_cohort(check_duplicates(peers), limits)
    if probe is not None:
        scores: dict[Path, float] = {}
        for peer in peers:
            started = time.monotonic()
            _probe(peer, probe, scores, limits)
            seconds[peer.name] += time.monotonic() - started
    for name, findings in found.items():
        findings.measured("seconds", round(seconds[name], 3))
    return {name: findings.verdict() for name, findings in found.items()}


def _alone(
    findings: Findings,
    candidate: Candidate,
    bases: Callable[[int], Path],
    limits: Limits,
) -> Way | None:
    """Checks of the file and of its numbers; None where they cannot all be made."""
    if candidate.manifest is None or candidate.file is None:
        if findings.fine:
            why = candidate.fault or "its weights were not downloaded"
            findings.failed("manifest" if candidate.fault else "hash", why)
        return None
    if findings.checks["base"] not in (PASSED, NOT_RUN):
        return None
    base = open_weights(bases(candidate.manifest.base.round))
    weights = check_file(findings, candidate, base)
    if weights is None:
        return None
    check_statistics(findings, candidate)
    return check_numbers(findings, weights, base, limits)


def _probe(peer: Peer, probe: Probe, scores: dict[Path, float], limits: Limits) -> None:
    base = peer.way.base.file
    if base not in scores:
        scores[base] = float(probe(base))
    score = float(probe(peer.way.weights.file))
    peer.findings.measured("probe", score)
    peer.findings.measured("probe_base", scores[base])
    drop = scores[base] - score
    peer.findings.judge(
        "probe",
        [
            f"held-out data went from {scores[base]:.4g} with its base to {score:.4g}, "
            f"a loss of at most {limits.probe_drop:g} is taken"
        ]
        if not drop <= limits.probe_drop
        else [],
    )
