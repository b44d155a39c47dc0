"""Weights without a search: uniform, greedy, by loss; and search at random."""

from collections.abc import Callable

import numpy as np


def uniform(num_points: int) -> np.ndarray:
    """[K], 1/K each (Wortsman et al. 2022, arXiv:2203.05482, uniform soup)."""
    return np.full(num_points, 1 / num_points, np.float32)


def one_hot(num_points: int) -> np.ndarray:
    """[K, K], the experts themselves."""
    return np.eye(num_points, dtype=np.float32)


def greedy(
    quality: Callable[[np.ndarray], float], qualities: np.ndarray
) -> tuple[np.ndarray, int]:
    """Greedy soup: experts by quality, each kept if the mean gets strictly better.

    Args:
      quality: [K] weights -> quality on dev, higher is better.
      qualities: [K], of the experts alone.

    Returns:
      ([K] weights, evaluations made).

    Reference: Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    """
    order = np.argsort(-np.asarray(qualities), kind="stable")
    chosen = [int(order[0])]
    best = float(qualities[order[0]])
    for k in order[1:]:
        value = quality(_mean_of([*chosen, int(k)], len(order)))
        if value > best:
            best = value
            chosen.append(int(k))
    return _mean_of(chosen, len(order)), len(order) - 1


def loss_softmax(losses: np.ndarray, temperature: float = 5.0) -> np.ndarray:
    """w_k = softmax(-loss_k / T).

    Args:
      losses: [K] dev losses of the experts.
      temperature: T; 5 in LM-Cocktail, whose losses are larger than a
        classifier's: there the weights are close to uniform.

    Returns:
      [K] weights.

    Reference: Xiao et al. 2023, arXiv:2311.13534.
    """
    scaled = -np.asarray(losses, np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return (weights / weights.sum()).astype(np.float32)


def random_candidates(num_points: int, count: int, seed: int) -> np.ndarray:
    """[P, K] uniform on the simplex: the comparator at equal evaluations."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.dirichlet(np.ones(num_points), size=count).astype(np.float32)


def _mean_of(chosen: list[int], num_points: int) -> np.ndarray:
    weights = np.zeros(num_points, np.float32)
    weights[chosen] = 1 / len(chosen)
    return weights
