"""Divergences of two samples of vectors [n, D], which are taken as they are.

Give all tasks samples of one size: the bias of most of these grows with 1 / n.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.transfer.measure import Known, Measure

_POOLED = 6000  # vectors that the bandwidth is taken of, at most
_ROUNDING = 1e-13  # of a squared distance, beside the squared lengths


def median_bandwidth(samples: np.ndarray, *, seed: int = 0) -> float:
    """Gamma = 1 / (2 sigma^2), sigma the median distance of vectors of all tasks.

    One bandwidth for a whole study: by one for each pair, pairs could not be compared.

    Args:
      samples: [N, n, D] of all tasks.
      seed: of the pool, where there are more vectors than 6,000.

    Raises:
      ValueError: more than half of the vectors are equal.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    pool = np.asarray(samples, np.float64).reshape(-1, np.shape(samples)[-1])
    if len(pool) > _POOLED:
        random = np.random.default_rng(seed)
        pool = pool[np.sort(random.choice(len(pool), _POOLED, replace=False))]
    distances = euclidean_distances(pool - pool.mean(axis=0))
    sigma = float(np.median(distances[np.triu_indices(len(pool), 1)]))
    if not sigma > 0:
        raise ValueError(
            f"bandwidth: the median distance of {len(pool)} vectors is {sigma}; most "
            "texts are represented by the same vector"
        )
    return 1 / (2 * sigma**2)


def mean_kernel(sample: jax.Array, *, gamma: jax.Array | float) -> jax.Array:
    """The mean of k(x_i, x_j) over i != j of a sample [n, D]."""
    n = len(sample)
    total = jnp.sum(jnp.exp(-gamma * squared_distances(sample, sample)))
    return (total - n) / (n * (n - 1))


def mmd(x: Known, y: Known, *, gamma: jax.Array | float) -> jax.Array:
    """Unbiased squared maximum mean discrepancy, k(a, b) = exp(-gamma ||a - b||^2).

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)

    May be below zero where the two are alike; it is ranked as it is.

    Args:
      x: sample [n, D] with its `mean_kernel`.
      y: the same.
      gamma: of the kernel, one for the whole study.

    Reference: Gretton et al. 2012, JMLR 13.
    """
    squares = squared_distances(x.task, y.task)
    return x.own + y.own - 2 * jnp.mean(jnp.exp(-gamma * squares))


def mean_distance(sample: jax.Array) -> jax.Array:
    """The mean of ||x_i - x_j|| over all pairs of a sample [n, D]."""
    return _mean_distance(sample, sample)


def energy(x: Known, y: Known) -> jax.Array:
    """2 E||x - y|| - E||x - x'|| - E||y - y'||, all means over all pairs.

    Args:
      x: sample [n, D] with its `mean_distance`.
      y: the same.

    Reference: Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018.
    """
    return 2 * _mean_distance(x.task, y.task) - x.own - y.own


def _mean_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sqrt(squared_distances(x, y)))


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """||x_i - y_j||^2, [n, m], by one matrix product; for float64.

    The expanded square cancels, so that both are centred first, and what is left of
    equal rows by rounding is set to zero.
    """
    centre = (jnp.mean(x, axis=0) + jnp.mean(y, axis=0)) / 2
    x, y = x - centre, y - centre
    sizes = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)
    found = sizes - 2 * jnp.matmul(x, y.T, precision="highest")
    return jnp.where(found > _ROUNDING * sizes, found, 0)


RECORDS: dict[str, Measure] = {
    "mmd": Measure(
        mmd,
        "sample",
        True,
        frozenset({"rotation"}),
        "Gretton et al. 2012, JMLR 13",
        mean_kernel,
    ),
    "energy": Measure(
        energy,
        "sample",
        True,
        frozenset({"zero", "positive", "duplication", "rotation"}),
        "Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018",
        mean_distance,
    ),
}
