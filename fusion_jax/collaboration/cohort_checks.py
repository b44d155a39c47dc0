"""Checks of contributions against each other: copies, and who went much too far."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.checkpoints.inspection.groups import layers_of
from fusion_jax.collaboration.contributions import inner
from fusion_jax.collaboration.delta_checks import Way
from fusion_jax.collaboration.verdicts import Findings, Limits
from fusion_jax.collaboration.weights_file import pieces

SAME = 1e-6
"""1 - cosine below which two contributions are one."""

# Unit vectors of that cosine are no further apart, in any of their entries.
_APART = 1.01 * np.sqrt(2 * SAME)
_MAD = 1.4826  # standard deviation of a normal distribution by its MAD


class Peer(NamedTuple):
    """A contribution that passed all checks of its own.

    Attributes:
      name: of its manifest.
      manifest_sha256: the smaller stays of two that are the same.
      sha256: of its weights.
      way: how far it went.
      findings: where checks are noted.
    """

    name: str
    manifest_sha256: str
    sha256: str
    way: Way
    findings: Findings


def check_duplicates(peers: Sequence[Peer]) -> list[Peer]:
    """Refuses whoever sent what another sent as well.

    The same weights, or a way in the same direction (cosine above 1 - 1e-6 over the
    whole model, each from its own base): a copy with a changed bit, or scaled. The one
    whose manifest has the smaller hash stays. Who copies and scales can so displace
    the other; the vote is counted once all the same.

    Args:
      peers: in any order.

    Returns:
      Those that stay, in the order of the hashes of their manifests.
    """
    kept: list[Peer] = []
    for peer in sorted(peers, key=lambda p: (p.manifest_sha256, p.name)):
        fault = next((f for other in kept if (f := _fault(peer, other))), "")
        peer.findings.judge("duplicate", [fault] if fault else [])
        if not fault:
            kept.append(peer)
    return kept


def check_cohort(peers: Sequence[Peer], limits: Limits) -> list[Peer]:
    """Refuses whoever went much further than the others, in any group of tensors.

    z = (log ||delta|| - median) / max(1.4826 MAD, spread),  refused above `deviations`

    over the whole model and in each layer. Who went less far is not refused, nor who
    went no further than `harmless` of its base's norm: few data make a short way.
    Groups that fewer than `min_cohort` have changed say nothing. The measure of the
    whole is noted as 'robust_z', the largest of a group as 'largest_group_z'.

    Args:
      peers: that are no duplicates.
      limits: deviations, spread, min_cohort.

    Returns:
      Those that stay.

    Reference: Iglewicz & Hoaglin 1993 (scores by median and MAD).
    """
    if len(peers) < limits.min_cohort:
        for peer in peers:
            peer.findings.left_out(
                "cohort",
                f"{len(peers)} contributions, from {limits.min_cohort} on they are "
                "compared",
            )
        return list(peers)
    groups = layers_of(list(peers[0].way.squares))
    names = ["the whole model", *dict.fromkeys(groups.values())]
    norms, bases = (
        np.sqrt([_by_group(x, groups, names) for x in squares])
        for squares in (
            [peer.way.squares for peer in peers],
            [peer.way.base_squares for peer in peers],
        )
    )
    far = norms > limits.harmless * bases
    scores, middles = np.full(norms.shape, -np.inf), np.ones(len(names))
    for column in range(norms.shape[1]):
        moved = norms[:, column] > 0
        if moved.sum() >= limits.min_cohort:
            logs = np.log(norms[moved, column])
            middle = np.median(logs)
            spread = max(_MAD * np.median(np.abs(logs - middle)), limits.spread)
            scores[moved, column] = (logs - middle) / spread
            middles[column] = np.exp(middle)
    for peer, row, own, judged in zip(peers, scores, norms, far, strict=True):
        peer.findings.measured("robust_z", row[0])
        peer.findings.measured("largest_group_z", row[1:].max(initial=-np.inf))
        peer.findings.judge(
            "cohort",
            [
                f"{name} went {norm / middle:.3g} times the median of "
                f"{len(peers)} contributions, {z:.1f} robust standard deviations, "
                f"at most {limits.deviations:g} are taken"
                for name, z, norm, middle, over in zip(
                    names, row, own, middles, judged, strict=True
                )
                if over and z > limits.deviations
            ],
        )
    return [peer for peer in peers if peer.findings.fine]


def _fault(peer: Peer, other: Peer) -> str:
    if peer.sha256 == other.sha256:
        return f"the same weights as {other.name}"
    if _far_apart(peer.way, other.way):
        return ""
    if _cosine(peer.way, other.way) <= 1 - SAME:
        return ""
    return f"the same direction as {other.name} (cosine above 1 - {SAME:g})"


def _far_apart(a: Way, b: Way) -> bool:
    """Whether some of their entries tell already that they are not the same."""
    return bool(np.linalg.norm(a.sample / a.norm - b.sample / b.norm) > _APART)


def _cosine(a: Way, b: Way) -> float:
    total = 0.0
    for name in a.squares:
        for piece in pieces(a.base.tensors[name].size):
            ways = [
                way.weights.wide(name, piece) - way.base.wide(name, piece)
                for way in (a, b)
            ]
            total += inner(*ways)
    return total / (a.norm * b.norm)


def _by_group(
    squares: Mapping[str, float], groups: Mapping[str, str], names: Sequence[str]
) -> list[float]:
    """Sums over the whole, then over each group, in the order of `names`."""
    found = dict.fromkeys(names[1:], 0.0)
    for tensor, group in groups.items():
        found[group] += squares[tensor]
    return [sum(found.values()), *found.values()]
