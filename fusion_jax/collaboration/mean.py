"""The mean of contributions, and the mean of their ways: one piece in memory."""

from collections.abc import Sequence

import numpy as np

from fusion_jax.collaboration.contributions import Contribution, delta


def mean(contributions: Sequence[Contribution], name: str, piece: slice) -> np.ndarray:
    """The mean of fresh contributions, as in the paper.

    theta = 1/N sum_c theta_c, summed in float64 in the order given

    The sum of N float32 values is exact in float64 where they do not differ by more
    than 2^29 / N in size, so that N copies of a model give that model.

    Args:
      contributions: N, which all count as they are.
      name: of the tensor.
      piece: of the flattened tensor.

    Returns:
      [piece] float64.

    Reference: Don-Yehiya et al. 2023, arXiv:2212.01378.
    """
    # From the first, not from 0: that would lose the sign of -0.
    total = contributions[0].weights.wide(name, piece)
    for contribution in contributions[1:]:
        total += contribution.weights.wide(name, piece)
    total /= len(contributions)
    return total


def mean_delta(
    contributions: Sequence[Contribution], name: str, piece: slice
) -> np.ndarray:
    """The weighted mean of the ways from each contribution's own base.

    delta = sum_c v_c f_c (theta_c - theta_b(c)) / sum_c v_c, summed in float64

    with the vote v_c by age and the factor f_c of a clipped contribution.

    Args:
      contributions: N.
      name: of the tensor.
      piece: of the flattened tensor.

    Returns:
      [piece] float64.
    """
    total = np.zeros(piece.stop - piece.start)
    for contribution in contributions:
        values = delta(contribution, name, piece)
        values *= contribution.vote * contribution.factor
        total += values
    total /= sum(contribution.vote for contribution in contributions)
    return total
