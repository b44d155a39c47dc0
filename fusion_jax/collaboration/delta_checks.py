"""Checks of one contribution's numbers against the base that it began from.

How far fine-tunes go, as ||theta - theta_b|| / ||theta_b||, measured with a MiniLM of 6
layers (its embeddings frozen, 3 epochs of AdamW):

    rows   peak rate   whole model   its layers     its pooler
    200    5e-5        0.004         0.005 - 0.006  0.05
    2000   5e-5        0.011         0.012 - 0.017  0.15
    2000   5e-4        0.058         0.071 - 0.092  0.27

The last rate is ten times the usual one. Weights that have nothing to do with the base
are at 1 or more, since sqrt(1 + r^2) >= 1 at any ratio r of the norms; so the default
limit is 0.5. A hundred times the way of 2000 rows is at 1.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusion_jax.collaboration.contributions import inner
from fusion_jax.collaboration.verdicts import Findings, Limits
from fusion_jax.collaboration.weights_file import Weights, pieces

_SAMPLE = 128  # entries of each tensor


@dataclass(frozen=True)
class Way:
    """How far a contribution went.

    Attributes:
      weights: of the contribution.
      base: that it began from.
      squares: tensor -> ||theta - theta_b||^2, floating tensors alone.
      base_squares: tensor -> ||theta_b||^2, likewise.
      sample: some entries of theta - theta_b, the same of every contribution; float32.
    """

    weights: Weights
    base: Weights
    squares: Mapping[str, float]
    base_squares: Mapping[str, float]
    sample: np.ndarray

    @property
    def norm(self) -> float:
        """||theta - theta_b|| over the whole model."""
        return float(np.sqrt(sum(self.squares.values())))

    @property
    def relative(self) -> float:
        """||theta - theta_b|| / ||theta_b||; infinite of a base that is 0."""
        base = float(np.sqrt(sum(self.base_squares.values())))
        if not base:
            return float("inf") if self.norm else 0.0
        return self.norm / base


def check_numbers(
    findings: Findings, weights: Weights, base: Weights, limits: Limits
) -> Way | None:
    """Reads a contribution and its base once, piece by piece; sums in float64.

    Args:
      findings: where the checks and 'relative_norm' are noted.
      weights: of the contribution, whose header is that of the base.
      base: that it began from.
      limits: of the relative norm.

    Returns:
      How far it went; None where that cannot be said.
    """
    bad: dict[str, int] = {}
    integers, constant = [], []
    squares: dict[str, float] = {}
    base_squares: dict[str, float] = {}
    samples: list[np.ndarray] = []
    for name, info in base.tensors.items():
        ends = _Ends(), _Ends()
        total = base_total = 0.0
        for piece in pieces(info.size):
            held, own = weights.read(name, piece), base.read(name, piece)
            if not info.floating:
                if not np.array_equal(held, own):
                    integers.append(name)
                    break
                continue
            held, own = held.astype(np.float64), own.astype(np.float64)
            count = held.size - int(np.count_nonzero(np.isfinite(held)))
            if count:
                bad[name] = bad.get(name, 0) + count
                continue
            for end, values in zip(ends, (held, own), strict=True):
                end.add(values)
            base_total += inner(own, own)
            with np.errstate(over="ignore"):  # infinite is more than any limit
                held -= own
                step = -(-info.size // _SAMPLE)
                samples.append(held[-piece.start % step :: step].astype(np.float32))
            total += inner(held, held)
        if info.floating:
            squares[name], base_squares[name] = total, base_total
            if info.size > 1 and name not in bad:
                constant += [name] if ends[0].equal and not ends[1].equal else []
    findings.judge(
        "finite",
        [
            f"{name} holds NaN or infinity in {count} of {base.tensors[name].size}"
            for name, count in bad.items()
        ],
    )
    findings.judge("integers", [f"{name} is not as in the base" for name in integers])
    findings.judge(
        "constant", [f"all entries of {name} are equal" for name in constant]
    )
    if bad:
        return None
    way = Way(weights, base, squares, base_squares, np.concatenate(samples))
    relative = way.relative
    findings.measured("relative_norm", relative)
    least, most = limits.min_relative_norm, limits.max_relative_norm
    findings.judge(
        "changed",
        [
            "it is the base, nothing was learned"
            if not relative
            else f"it went {relative:.3g} of the base's norm, less than {least:g}"
        ]
        if not relative or relative < least
        else [],
    )
    findings.judge(
        "norm",
        [f"it went {relative:.3g} of the base's norm, at most {most:g} is taken"]
        if not relative <= most
        else [],
    )
    return way


class _Ends:
    """The least and greatest value of a tensor."""

    def __init__(self) -> None:
        self._least, self._most = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Adds a piece."""
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))

    @property
    def equal(self) -> bool:
        """Whether all values are one."""
        return self._least == self._most
