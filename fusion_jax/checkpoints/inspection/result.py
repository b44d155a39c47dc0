"""What an inspection found: numbers by group of tensors, and the findings."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.checkpoints.inspection.matching import Finding
from fusion_jax.checkpoints.inspection.sums import Sums

MEAN = "mean of the models"


@dataclass(frozen=True)
class Inspection:
    """Numbers by group of tensors, the last group being all: G + 1 rows.

    A task vector is the delta of a model to the base, or to the mean of the models.
    Undefined numbers (the cosine of a zero vector) are NaN.

    Attributes:
      models: label -> folder, K of them.
      base: its folder, or None.
      by: 'layer' or 'tensor'.
      groups: G names, then 'total'.
      elements: [G + 1] compared.
      tensors: how many were compared.
      dtypes: of the compared tensors of the models.
      norms: [G + 1, K] of the task vectors.
      reference_norms: [G + 1] of the base or the mean.
      relative: [G + 1, K] norms / reference_norms.
      zeros: [G + 1, K] share of the delta's entries that are exactly zero.
      largest: [G + 1, K] largest |delta|.
      pairs: P = K (K - 1) / 2 pairs of indices of models.
      cosines: [G + 1, P] of the task vectors.
      weight_cosines: [G + 1, P] of the models' weights themselves.
      agreement: [G + 1, P] share of equal signs where both deltas are non-zero.
      agreement_all: [G + 1] the same over all K.
      equal: [P] whether all compared tensors hold the same values.
      findings: what does not fit or was left out.
    """

    models: Mapping[str, Path]
    base: Path | None
    by: str
    groups: Sequence[str]
    elements: np.ndarray
    tensors: int
    dtypes: Sequence[str]
    norms: np.ndarray
    reference_norms: np.ndarray
    relative: np.ndarray
    zeros: np.ndarray
    largest: np.ndarray
    pairs: Sequence[tuple[int, int]]
    cosines: np.ndarray
    weight_cosines: np.ndarray
    agreement: np.ndarray
    agreement_all: np.ndarray
    equal: np.ndarray
    findings: Sequence[Finding]

    @property
    def reference(self) -> str:
        """What the deltas are to, in words."""
        return MEAN if self.base is None else f"base {self.base}"

    def record(self) -> dict[str, Any]:
        """All numbers for JSON; what is undefined is null."""
        names = list(self.models)
        groups = []
        for g, group in enumerate(self.groups):
            models = {
                name: {
                    "norm": _known(self.norms[g, k]),
                    "relative_norm": _known(self.relative[g, k]),
                    "zeros": _known(self.zeros[g, k]),
                    "largest": _known(self.largest[g, k]),
                }
                for k, name in enumerate(names)
            }
            pairs = [
                {
                    "models": [names[i], names[j]],
                    "cosine": _known(self.cosines[g, p]),
                    "weight_cosine": _known(self.weight_cosines[g, p]),
                    "sign_agreement": _known(self.agreement[g, p]),
                }
                for p, (i, j) in enumerate(self.pairs)
            ]
            groups.append(
                {
                    "group": group,
                    "elements": int(self.elements[g]),
                    "reference_norm": _known(self.reference_norms[g]),
                    "models": models,
                    "pairs": pairs,
                    "sign_agreement_all": _known(self.agreement_all[g]),
                }
            )
        return {
            "models": {name: str(folder) for name, folder in self.models.items()},
            "base": None if self.base is None else str(self.base),
            "reference": self.reference,
            "by": self.by,
            "tensors": self.tensors,
            "dtypes": list(self.dtypes),
            "groups": groups,
            "identical": [
                [names[i], names[j]]
                for (i, j), same in zip(self.pairs, self.equal, strict=True)
                if same
            ],
            "findings": [finding._asdict() for finding in self.findings],
        }


def from_sums(
    sums: Mapping[str, Sums],
    *,
    models: Mapping[str, Path],
    base: Path | None,
    by: str,
    tensors: int,
    dtypes: Sequence[str],
    findings: Sequence[Finding],
) -> Inspection:
    """Turns added facts into shares, norms and cosines; see `Inspection`.

    Args:
      sums: G groups, the last of them the total.
      models: label -> folder, K.
      base: its folder, or None.
      by: 'layer' or 'tensor'.
      tensors: how many were compared.
      dtypes: of the models' tensors.
      findings: what does not fit.
    """
    count = len(models)
    pairs = list(itertools.combinations(range(count), 2))
    one, other = np.array(pairs, int).reshape(-1, 2).T
    every = list(sums.values())
    gram = np.stack([s.gram for s in every])
    size = np.array([s.size for s in every])
    same = np.stack([s.same for s in every])
    both = np.stack([s.both for s in every])
    inner, with_reference = gram[:, :count, :count], gram[:, :count, count]
    norms = np.sqrt(np.einsum("gkk->gk", inner))
    reference = gram[:, count, count]
    # w = r + d: the weights' own inner products come for nothing.
    weights = (
        inner
        + with_reference[:, :, None]
        + with_reference[:, None, :]
        + reference[:, None, None]
    )
    # Rounding may bring what is zero below it.
    lengths = np.sqrt(np.maximum(np.einsum("gkk->gk", weights), 0.0))
    reference_norms = np.sqrt(reference)
    return Inspection(
        models=models,
        base=base,
        by=by,
        groups=list(sums),
        elements=size,
        tensors=tensors,
        dtypes=dtypes,
        norms=norms,
        reference_norms=reference_norms,
        relative=_over(norms, reference_norms[:, None]),
        zeros=_over(size[:, None] - np.einsum("gkk->gk", both), size[:, None]),
        largest=np.stack([s.largest for s in every]),
        pairs=pairs,
        cosines=_cosines(inner, norms, one, other),
        weight_cosines=_cosines(weights, lengths, one, other),
        agreement=_over(same[:, one, other], both[:, one, other]),
        agreement_all=_over(
            np.array([s.same_all for s in every]),
            np.array([s.both_all if count > 1 else 0 for s in every]),
        ),
        equal=every[-1].equal[one, other],
        findings=findings,
    )


def _cosines(
    inner: np.ndarray, norms: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    found = _over(inner[:, one, other], norms[:, one] * norms[:, other])
    return np.clip(found, -1.0, 1.0)


def _over(value: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The quotient, and NaN where that is undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(by > 0, np.divide(value, by), np.nan)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
