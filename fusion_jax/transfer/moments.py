"""Divergences of two Gaussians: of samples by their mean and covariance alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.transfer.measure import Known, Measure
from fusion_jax.transfer.term_divergences import cosine, euclidean

Array = Any
"""Of numpy on the host, of jax within a pair."""


class Moments(NamedTuple):
    """A sample of n vectors by its first two moments.

    Attributes:
      mean: [D] float64.
      covariance: [D, D], with n - 1 in the denominator.
      shrunk: [D, D], of full rank where n is below D (Ledoit and Wolf 2004): what is
        inverted or whose determinant is taken.
      factor: [D, min(n, D)], F F' = C: of few texts it is narrower than C.
    """

    mean: Array
    covariance: Array
    shrunk: Array
    factor: Array


def moments_of(sample: np.ndarray) -> Moments:
    """Mean, covariance and its Ledoit-Wolf form of a sample [n, D], in float64.

    Raises:
      ValueError: fewer than two rows, or values that are not finite.
    """
    from sklearn.covariance import ledoit_wolf

    values = np.asarray(sample, np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(
            f"a sample of shape {values.shape}: moments need [n, D] with n of 2 or more"
        )
    bad = int((~np.isfinite(values)).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(values)} vectors are not finite: the encoder gave NaN or "
            "infinity for their texts; leave the task out, or repair the encoder"
        )
    width = values.shape[1]
    covariance = np.cov(values, rowvar=False, ddof=1).reshape(width, width)
    mean = values.mean(axis=0)
    if len(values) <= width:
        factor = (values - mean).T / np.sqrt(len(values) - 1)
    else:
        size, axes = np.linalg.eigh(covariance)
        factor = axes * np.sqrt(np.maximum(size, 0))
    # On the host: outside a float64 context jax would round them.
    return Moments(mean, covariance, ledoit_wolf(values)[0], factor)


def mean_cosine(x: Moments, y: Moments) -> jax.Array:
    """1 - cos(mu_x, mu_y): TextEmb. States of models lie in a cone: read ranks."""
    return cosine(x.mean, y.mean)


def mean_euclidean(x: Moments, y: Moments) -> jax.Array:
    """||mu_x - mu_y||."""
    return euclidean(x.mean, y.mean)


def coral(x: Moments, y: Moments) -> jax.Array:
    """||C_x - C_y||_F^2 / (4 D^2).

    Reference: Sun and Saenko 2016, arXiv:1607.01719.
    """
    width = len(x.mean)
    return jnp.sum((x.covariance - y.covariance) ** 2) / (4 * width**2)


def bures(x: Moments, y: Moments) -> jax.Array:
    """Squared 2-Wasserstein distance of two Gaussians.

    ||mu_x - mu_y||^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2)

    The last trace is the sum of the singular values of F_x' F_y, C = F F': a matrix as
    wide as there are texts, and no root of a covariance. Libraries often give the root
    of the distance.
    """
    cross = jnp.linalg.svd(x.factor.T @ y.factor, compute_uv=False)
    traces = jnp.trace(x.covariance) + jnp.trace(y.covariance)
    spread = traces - 2 * jnp.sum(cross)
    return jnp.sum((x.mean - y.mean) ** 2) + jnp.maximum(spread, 0)


def logdet_of_shrunk(task: Moments) -> jax.Array:
    """ln|C|, C shrunk: in 384 dimensions the determinant itself is 0."""
    return _logdet(jnp.linalg.cholesky(task.shrunk, symmetrize_input=False))


def gaussian_bhattacharyya(x: Known, y: Known) -> jax.Array:
    """D' S^-1 d / 8 + (ln|S| - (ln|C_x| + ln|C_y|) / 2) / 2, S = (C_x + C_y) / 2.

    With shrunk covariances.

    Args:
      x: moments with their `logdet_of_shrunk`.
      y: the same.
    """
    factor, distance = _pooled(x.task, y.task)
    return distance / 8 + (_logdet(factor) - (x.own + y.own) / 2) / 2


def fisher_discriminant(x: Moments, y: Moments) -> jax.Array:
    """(mu_x - mu_y)' S^-1 (mu_x - mu_y), S the mean of the shrunk covariances.

    What the best linear discriminant with equal priors reaches: the squared
    Mahalanobis distance.
    """
    return _pooled(x, y)[1]


def _pooled(x: Moments, y: Moments) -> tuple[jax.Array, jax.Array]:
    """(L, d' S^-1 d) with S = (C_x + C_y) / 2 = L L' and d the means' difference."""
    pooled = (x.shrunk + y.shrunk) / 2
    factor = jnp.linalg.cholesky(pooled, symmetrize_input=False)
    white = jax.scipy.linalg.solve_triangular(factor, x.mean - y.mean, lower=True)
    return factor, jnp.sum(white**2)


def _logdet(factor: jax.Array) -> jax.Array:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))


def _record(function: Callable[..., jax.Array], reference: str, *more: str) -> Measure:
    promises = frozenset({"zero", "positive", *more})
    return Measure(function, "moments", True, promises, reference)


RECORDS: dict[str, Measure] = {
    "mean_cosine": _record(mean_cosine, "Vu et al. 2020, arXiv:2005.00770", "rotation"),
    "mean_euclidean": _record(
        mean_euclidean, "Guo et al. 2020, arXiv:2001.04362", "rotation"
    ),
    "coral": _record(coral, "Sun and Saenko 2016, arXiv:1607.01719", "rotation"),
    "bures": _record(bures, "Dowson and Landau 1982", "rotation"),
    "gaussian_bhattacharyya": _record(
        gaussian_bhattacharyya, "Bhattacharyya 1943", "rotation"
    )._replace(prepare=logdet_of_shrunk),
    "fisher_discriminant": _record(fisher_discriminant, "Fisher 1936", "rotation"),
}
