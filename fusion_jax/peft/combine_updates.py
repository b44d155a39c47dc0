"""Ways to merge low-rank updates of one layer: exact ones, TIES, DARE, KnOTS."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion_jax.merging.knots import merged_inside
from fusion_jax.peft.combine_leaves import merged_changes
from fusion_jax.peft.factors import Factors, concatenated, of_dense, truncated
from fusion_jax.types import Key

Merged = tuple[Factors, float]
"""The merged update, and the relative Frobenius error that its truncation made."""


def concatenate(parts: Sequence[Factors], weights: Sequence[float]) -> Merged:
    """sum_k w_k a_k b_k, exactly; its rank is the sum of the ranks.

    Args:
      parts: K updates of one layer, of any ranks.
      weights: K numbers of any sign.

    Returns:
      (factors [in, sum r], [sum r, out], 0).
    """
    return concatenated(parts, weights), 0.0


def svd(
    parts: Sequence[Factors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> Merged:
    """The sum of `concatenate` cut to a rank: the nearest such update.

    By QR of the stacked factors; no matrix of [in, out] is formed.

    Args:
      parts: see `concatenate`.
      weights: see `concatenate`.
      rank: the most to keep; the largest of the parts' without `energy`, else any.
      energy: least share of the squared norm to keep, in (0, 1].

    Returns:
      (factors of at most `rank`, what the cut lost).
    """
    return truncated(
        concatenated(parts, weights), rank=_rank(parts, rank, energy), energy=energy
    )


def linear_factors(parts: Sequence[Factors], weights: Sequence[float]) -> Merged:
    """The rule of torch peft's 'linear', and but for weights LoraHub's: not exact.

    a = sum_k sign(w_k) sqrt|w_k| a_k,  b = sum_k sqrt|w_k| b_k

    a b is not sum_k w_k a_k b_k: it has the cross terms a_j b_k of every pair. Here to
    repeat what others did; `concatenate` and `svd` are the sum itself.

    Args:
      parts: K updates of one layer and one rank; each scaling is split evenly, as
        there, between a and b.
      weights: K numbers.

    Returns:
      (factors of the rank of the parts, 0).

    Raises:
      ValueError: ranks differ.

    Reference: huggingface/peft, add_weighted_adapter; Huang et al. 2023,
    arXiv:2307.13269 (LoraHub).
    """
    ranks = sorted({part.rank for part in parts})
    if len(ranks) > 1:
        raise ValueError(
            f"linear_factors: ranks {', '.join(map(str, ranks))} cannot be added; use "
            "concatenate or svd"
        )
    roots = [math.sqrt(abs(weight)) for weight in weights]
    signs = [math.copysign(1.0, weight) for weight in weights]
    a = sum(s * r * part.a for s, r, part in zip(signs, roots, parts, strict=True))
    b = sum(r * part.b for r, part in zip(roots, parts, strict=True))
    return Factors(np.asarray(a), np.asarray(b)), 0.0


def merged_updates(
    method: str,
    parts: Sequence[Factors],
    weights: Sequence[float],
    *,
    key: Key | None = None,
    rank: int | None = None,
    energy: float | None = None,
    **options: Any,
) -> Merged:
    """A merge of `MERGES` on the updates of one layer, then cut to a rank.

    The merged update has no low rank of its own: this layer's K matrices [in, out] are
    formed, in float32, and one dense SVD is taken. Other layers are not in memory. What
    was dropped entry by entry is no matrix of low rank: look at what the cut lost.

    Args:
      method: a merge that needs a base: ties (which trims this layer by itself), dare,
        dare_ties.
      parts: see `concatenate`.
      weights: its coefficients.
      key: of the masks of this layer, where it draws any.
      rank: see `svd`.
      energy: see `svd`.
      **options: of the merge.

    Returns:
      (factors, what the cut lost).
    """
    products = [part.a @ part.b for part in parts]
    merged = merged_changes(method, products, weights, 0.0, key=key, **options)
    return truncated(
        of_dense(merged.astype(np.float64)),
        rank=_rank(parts, rank, energy),
        energy=energy,
    )


def knots_updates(
    parts: Sequence[Factors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    energy: float | None = None,
    density: float = 0.2,
    scale: float = 1.0,
    cut: float = 1e-5,
    inner: str = "ties",
) -> Merged:
    """`merging.knots` of the updates without forming any of them.

    a_k = Q_k R_k,  [R_1 b_1; ...; R_K b_K] = P S U'  [sum r, out]
    e_k = a_k (b_k U)  [in, n],  a = scale * merge(e_1, ..., e_K; w),  b = U'

    The rows of the small matrix have the Gram matrix of the K updates, so its right
    singular vectors are theirs. The result has at most the sum of the ranks.

    Args:
      parts: see `concatenate`.
      weights: not negative with inner='ties', where only their ratios count.
      rank: see `svd`.
      energy: see `svd`.
      density: see `merging.knots`.
      scale: of the merged update.
      cut: see `merging.knots`.
      inner: 'ties' or 'sum'.

    Returns:
      (factors, what the cut to `rank` lost).

    Reference: Stoica et al. 2024, arXiv:2410.19735.
    """
    small = np.concatenate([np.linalg.qr(p.a, mode="r") @ p.b for p in parts])
    _, values, basis = np.linalg.svd(small, full_matrices=False)
    basis = basis[values > cut * values.max(initial=0.0)]
    if not len(basis):
        return truncated(concatenated(parts, weights), rank=1)
    inside = np.stack([part.a @ (part.b @ basis.T) for part in parts])
    merged = merged_inside(
        jnp.asarray(inside, jnp.float32),
        jnp.asarray(weights, jnp.float32),
        rank=len(basis),
        density=density,
        inner=inner,
    )
    update = Factors(scale * np.asarray(merged, np.float64), basis)
    return truncated(update, rank=_rank(parts, rank, energy), energy=energy)


def _rank(
    parts: Sequence[Factors], rank: int | None, energy: float | None
) -> int | None:
    """What is kept at most: as asked, else the largest rank that went in."""
    if rank is not None or energy is not None:
        return rank
    return max(part.rank for part in parts)
