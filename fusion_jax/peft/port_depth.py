"""Which layers of the origin a receiver's layer takes, and the mean of several."""

import itertools
import re
from collections.abc import Sequence

import numpy as np

from fusion_jax.peft.port_host import LAYER

DEPTHS = ("skip", "average")

# What a part adds to the host is linear in one of these: 0 where there is no part.
_ADDED = re.compile(
    r".*/(lora/a|compacter/up/left|(adapter|compacter)/up/(kernel|bias))"
)


def layers_taken(source: int, target: int, depth: str) -> list[tuple[int, ...]]:
    """For each layer of the receiver the origin's layers that it takes.

    skip: layer j takes j k where k = source / target is whole, else
    floor((j + 1/2) source / target). average: the mean of the k layers of its group;
    where k is not whole, of those from floor(j source / target) on that the next group
    has not; of the one of skip where the receiver is deeper.

    Args:
      source: layers of the origin.
      target: layers of the receiver.
      depth: of `DEPTHS`.

    Returns:
      `target` tuples of layer numbers.

    Raises:
      ValueError: the rule is unknown.

    Reference: Klimaszewski et al. 2024, arXiv 2403.18804.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth: '{depth}' is not one of {', '.join(DEPTHS)}")
    if depth == "average" and source > target:
        starts = [j * source // target for j in range(target + 1)]
        return [tuple(range(a, b)) for a, b in itertools.pairwise(starts)]
    if source % target == 0:
        return [(j * (source // target),) for j in range(target)]
    return [((2 * j + 1) * source // (2 * target),) for j in range(target)]


def share_of(
    name: str, sources: Sequence[str], taken: Sequence[tuple[int, ...]]
) -> float:
    """Part of a receiver's layers' mean that those with the leaf are; else 1."""
    found = LAYER.fullmatch(name)
    if found is None or not _ADDED.fullmatch(name):
        return 1.0
    return len(sources) / len(taken[int(found[2])])


def mean(values: Sequence[np.ndarray], share: float) -> np.ndarray:
    """The mean times a share, float64; one value with a share of 1 as it is."""
    if len(values) == 1 and share == 1:
        return values[0]
    return share * np.mean([np.asarray(x, np.float64) for x in values], axis=0)


def mean_product(
    lefts: Sequence[np.ndarray],
    rights: Sequence[np.ndarray],
    weights: Sequence[float],
    rank: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The best product of rank r for sum_k w_k left_k right_k.

    The mean of the factors is not the mean of the products. The sum is
    [left_1, ...] [w_1 right_1; ...] = Q_l (R_l R_r^T) Q_r^T by QR; the small matrix in
    the middle is decomposed, and no matrix [in, out] is formed. Singular values are
    split evenly. Factors that are all equal come back as they are.

    Args:
      lefts: K arrays [..., in, r_k].
      rights: K arrays [..., r_k, out].
      weights: [K].
      rank: r; zeros fill it up where the sum has less.

    Returns:
      (left [..., in, r], right [..., r, out]) float64.
    """
    if _all_equal(lefts) and _all_equal(rights) and lefts[0].shape[-1] == rank:
        return np.asarray(lefts[0], np.float64), sum(weights) * np.asarray(
            rights[0], np.float64
        )
    left = np.concatenate([np.asarray(x, np.float64) for x in lefts], axis=-1)
    right = np.concatenate(
        [w * np.asarray(x, np.float64) for w, x in zip(weights, rights, strict=True)],
        axis=-2,
    )
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(np.swapaxes(right, -1, -2))
    u, values, v = np.linalg.svd(r_left @ np.swapaxes(r_right, -1, -2))
    kept = min(rank, values.shape[-1])
    root = np.sqrt(values[..., :kept])
    new_left = q_left @ (u[..., :, :kept] * root[..., None, :])
    new_right = (root[..., :, None] * v[..., :kept, :]) @ np.swapaxes(q_right, -1, -2)
    return _filled(new_left, rank, -1), _filled(new_right, rank, -2)


def _filled(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Zeros behind, up to a size."""
    missing = [(0, 0)] * x.ndim
    missing[axis] = (0, size - x.shape[axis])
    return np.pad(x, missing)


def _all_equal(arrays: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(arrays[0], x) for x in arrays[1:])
