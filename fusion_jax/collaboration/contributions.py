"""Contributions opened for a fuse: ages, votes, and how far each has gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_jax.checkpoints.object_files import table
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration.weights_file import Weights, open_weights, pieces

_MOST = 40


@dataclass(frozen=True)
class Member:
    """A contribution that is to be fused.

    Attributes:
      sha256: of its file of weights; decides the order of summation.
      file: its weights.
      age: rounds between the base that it began from and the one that is fused.
      own_base: weights of the base that it began from; not read where the age is 0.
      statistics: its Gram matrices or Fisher information, for methods that read them.
    """

    sha256: str
    file: Path
    age: int = 0
    own_base: Path | None = None
    statistics: Path | None = None


class Contribution(NamedTuple):
    """A member whose header was read.

    Attributes:
      member: which.
      weights: its own.
      base: the base that it began from.
      vote: v = 1 / (1 + discount * age).
      factor: what its way from its base is multiplied by; 1 unless it is clipped.
    """

    member: Member
    weights: Weights
    base: Weights
    vote: float
    factor: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether it counts as it is: fresh and not clipped."""
        return not self.member.age and self.factor == 1


def opened(
    base: Weights, members: Sequence[Member], discount: float
) -> list[Contribution]:
    """Reads all headers, in the order of the hashes of weights.

    Raises:
      ValueError: no members, or a late one without its own base.
      CheckpointError: tensors, shapes or dtypes that are not those of the base, all of
        them listed; integers that differ from the base's.
    """
    if not members:
        raise ValueError("fuse: no contribution is given; a round needs at least one")
    found, faults = [], []
    for member in sorted(members, key=lambda m: (m.sha256, m.age, str(m.file))):
        if member.age < 0 or (member.age and member.own_base is None):
            raise ValueError(
                f"fuse: {member.file} is {member.age} rounds old; a late contribution "
                "needs the weights of the base that it began from"
            )
        own = base
        if member.age and member.own_base is not None:
            own = open_weights(member.own_base)
            faults += _differences(base, own)
        weights = open_weights(member.file)
        faults += _differences(base, weights)
        found.append(
            Contribution(member, weights, own, 1 / (1 + discount * member.age))
        )
    if faults:
        lines = "\n  ".join(faults[:_MOST])
        more = f"\n  and {len(faults) - _MOST} more" if len(faults) > _MOST else ""
        raise CheckpointError(
            f"{len(faults)} differences to the base {base.file}:\n  {lines}{more}\n"
            "Screen contributions before they are fused."
        )
    return found


def clipped(contributions: Sequence[Contribution], clip: float) -> list[Contribution]:
    """Shortens those that went much further than the others.

    f_c = min(1, clip * median_j ||delta_j|| / ||delta_c||),  delta_c = theta_c -
    theta_b(c) over the whole model, norms in float64

    Args:
      contributions: K.
      clip: 0 leaves all as they are, and reads nothing.

    Reference: Sun et al. 2019, arXiv:1911.07963 (clipping of updates).
    """
    if not clip:
        return list(contributions)
    norms = [_norm(contribution) for contribution in contributions]
    limit = clip * float(np.median(norms))
    return [
        c._replace(factor=1.0 if norm <= limit else limit / norm)
        for c, norm in zip(contributions, norms, strict=True)
    ]


def shares(contributions: Sequence[Contribution]) -> dict[str, float]:
    """SHA-256 of weights -> share of the votes, of sum one."""
    total = sum(c.vote for c in contributions)
    found: dict[str, float] = {}
    for c in contributions:
        sha256 = c.member.sha256
        found[sha256] = found.get(sha256, 0.0) + c.vote / total
    return found


def delta(contribution: Contribution, name: str, piece: slice) -> np.ndarray:
    """theta_c - theta_b(c) of a piece, float64."""
    values = contribution.weights.wide(name, piece)
    values -= contribution.base.wide(name, piece)
    return values


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product of two flat arrays; infinite where it is too large.

    The same bits for any number of threads, which np.dot has not: norms decide what
    is clipped, and so the next base.
    """
    with np.errstate(over="ignore"):
        return float(np.sum(a * b))


def _norm(contribution: Contribution) -> float:
    total = 0.0
    for name, info in contribution.weights.tensors.items():
        if info.floating:
            for piece in pieces(info.size):
                values = delta(contribution, name, piece)
                total += inner(values, values)
    return float(np.sqrt(total))


def _differences(base: Weights, other: Weights) -> list[str]:
    """What is not as in the base: tensors, and then integers."""
    wanted, held = table(base.tensors), table(other.tensors)
    found = table_differences(wanted, held)
    for name, info in base.tensors.items():
        if info.floating or wanted[name] != held.get(name):
            continue
        if any(
            not np.array_equal(base.read(name, p), other.read(name, p))
            for p in pieces(info.size)
        ):
            found.append(f"{name}: integers that are not the base's")
    return [f"{other.file}: {fault}" for fault in found]


def table_differences(wanted: Mapping, held: Mapping) -> list[str]:
    """Tensors that are missing, too many, or of another dtype or shape."""
    found = [f"{name} is missing" for name in wanted if name not in held]
    found += [f"{name} is not in the base" for name in held if name not in wanted]
    found += [
        f"{name} is {held[name][0]} {tuple(held[name][1])}, in the base {dtype} "
        f"{tuple(shape)}"
        for name, (dtype, shape) in wanted.items()
        if name in held and held[name] != [dtype, shape]
    ]
    return found
