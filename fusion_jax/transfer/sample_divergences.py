"""Divergences of two samples of vectors [n, D], which are taken as they are.

Give all tasks samples of one size: the bias of most of these grows with 1 / n.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.transfer.measure import Measure

PROJECTIONS = 200
_POOLED = 6000  # vectors that the bandwidth is taken of, at most


def median_bandwidth(samples: np.ndarray, *, seed: int = 0) -> float:
    """Gamma = 1 / (2 sigma^2), sigma the median distance of vectors of all tasks.

    One bandwidth for a whole study: by one for each pair, pairs could not be compared.

    Args:
      samples: [N, n, D] of all tasks.
      seed: of the pool, where there are more vectors than 6,000.

    Raises:
      ValueError: more than half of the vectors are equal.
    """
    from scipy.spatial.distance import pdist

    pool = np.asarray(samples, np.float64).reshape(-1, np.shape(samples)[-1])
    if len(pool) > _POOLED:
        random = np.random.default_rng(seed)
        pool = pool[np.sort(random.choice(len(pool), _POOLED, replace=False))]
    sigma = float(np.median(pdist(pool)))
    if not sigma > 0:
        raise ValueError(
            f"bandwidth: the median distance of {len(pool)} vectors is {sigma}; most "
            "texts are represented by the same vector"
        )
    return 1 / (2 * sigma**2)


def mmd(x: jax.Array, y: jax.Array, *, gamma: jax.Array | float) -> jax.Array:
    """Unbiased squared maximum mean discrepancy, k(a, b) = exp(-gamma ||a - b||^2).

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)

    May be below zero where the two are alike; it is ranked as it is.

    Reference: Gretton et al. 2012, JMLR 13.
    """

    def within(sample: jax.Array) -> jax.Array:
        n = len(sample)
        total = jnp.sum(jnp.exp(-gamma * squared_distances(sample, sample)))
        return (total - n) / (n * (n - 1))

    between = jnp.mean(jnp.exp(-gamma * squared_distances(x, y)))
    return within(x) + within(y) - 2 * between


def energy(x: jax.Array, y: jax.Array) -> jax.Array:
    """2 E||x - y|| - E||x - x'|| - E||y - y'||, all means over all pairs.

    Reference: Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018.
    """

    def mean(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sqrt(squared_distances(a, b)))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def sliced_wasserstein(
    x: jax.Array, y: jax.Array, *, directions: jax.Array
) -> jax.Array:
    """Mean over directions of the squared 1-D 2-Wasserstein distance.

    Args:
      x: [n, D].
      y: [n, D], of the same size.
      directions: [R, D] unit vectors, one draw for the whole study.

    Reference: Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3.
    """
    if len(x) != len(y):
        raise ValueError(
            f"sliced_wasserstein: samples of {len(x)} and {len(y)} vectors; give both "
            "one size"
        )
    ordered = [jnp.sort(sample @ directions.T, axis=0) for sample in (x, y)]
    return jnp.mean((ordered[0] - ordered[1]) ** 2)


def unit_directions(width: int, count: int = PROJECTIONS, seed: int = 0) -> np.ndarray:
    """Random unit vectors [count, width], float64."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """||x_i - y_j||^2, [n, m].

    By differences, a row at a time: the expanded square cancels, and equal rows would
    not be at 0.
    """
    return jax.lax.map(lambda row: jnp.sum((row - y) ** 2, axis=-1), x)


RECORDS: dict[str, Measure] = {
    "mmd": Measure(
        mmd,
        "sample",
        True,
        frozenset({"rotation"}),
        "Gretton et al. 2012, JMLR 13",
    ),
    "energy": Measure(
        energy,
        "sample",
        True,
        frozenset({"zero", "positive", "duplication", "rotation"}),
        "Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018",
    ),
    "sliced_wasserstein": Measure(
        sliced_wasserstein,
        "sample",
        True,
        frozenset({"zero", "positive", "duplication"}),
        "Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3",
    ),
}
