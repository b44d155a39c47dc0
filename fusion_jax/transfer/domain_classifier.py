"""How well a classifier tells two tasks apart: proxy A-distance.

d_A = 2 (1 - 2 e), e the error of a linear classifier on texts that it was not trained
on, each task with the same weight. The texts at even places of a sample train, those at
odd places test: the order of a sample is a seeded draw.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.transfer.measure import Known, Measure

PENALTY = 1.0
_TIE = 1e-9  # of a score: neither task


class Trainers(NamedTuple):
    """The texts of a task that train.

    Attributes:
      mean: [D].
      vectors: [h, D], less their mean.
      gram: [h, h], their products with each other.
    """

    mean: jax.Array
    vectors: jax.Array
    gram: jax.Array


def trainers(sample: jax.Array, *, penalty: jax.Array | float = PENALTY) -> Trainers:
    """Those at even places of a sample [n, D]."""
    del penalty
    mean = jnp.mean(sample[::2], axis=0)
    vectors = sample[::2] - mean
    return Trainers(mean, vectors, _products(vectors, vectors))


def proxy_a(x: Known, y: Known, *, penalty: jax.Array | float = PENALTY) -> jax.Array:
    """2 (1 - 2 e), e the share of texts on the wrong side; in [-2, 2].

    The classifier is ridge regression on +1 and -1, in closed form:
      w = argmin_w ||A w - t||^2 + p tr(A'A) / D ||w||^2
    with A the texts of both that train, centred. Strongly regularised, since domains
    that a classifier parts without error are all at 2.

    Args:
      x: sample [n, D] with its `trainers`.
      y: the same.
      penalty: p, in units of the mean variance.

    Reference: Ben-David et al. 2007, Blitzer et al. 2007.
    """
    left, right = _scores(x, y, penalty)

    def wrong(scores: jax.Array) -> jax.Array:
        return jnp.mean(jnp.where(jnp.abs(scores) < _TIE, 0.5, scores < 0))

    return 2 * (1 - (wrong(left) + wrong(-right)))


def proxy_a_margin(
    x: Known, y: Known, *, penalty: jax.Array | float = PENALTY
) -> jax.Array:
    """2 (1 - 2 e), e the mean over texts of (1 - t f) / 2 within [0, 1].

    The same classifier, which says +1 with probability (1 + f) / 2: it does not
    saturate where no text is on the wrong side.
    """
    left, right = _scores(x, y, penalty)

    def wrong(scores: jax.Array) -> jax.Array:
        return jnp.mean(jnp.clip((1 - scores) / 2, 0, 1))

    return 2 * (1 - (wrong(left) + wrong(-right)))


def _scores(
    x: Known, y: Known, penalty: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Scores f of the texts that test: of x, which are +1, and of y, which are -1."""
    if len(x.task) != len(y.task) or len(x.task) < 4:
        raise ValueError(
            f"proxy A-distance: samples of {len(x.task)} and {len(y.task)} vectors; "
            "give both one size of 4 or more"
        )
    # Both are centred at the middle of their means, z: a text is its task's own part,
    # whose products are known, and half of the way between the means.
    middle, way = (x.own.mean + y.own.mean) / 2, (x.own.mean - y.own.mean) / 2
    half = len(x.own.vectors)
    between = _products(x.own.vectors, y.own.vectors)
    own = jnp.block([[x.own.gram, between], [between.T, y.own.gram]])
    vectors = jnp.concatenate([x.own.vectors, y.own.vectors])
    target = jnp.concatenate([jnp.ones(half), -jnp.ones(half)]).astype(vectors.dtype)
    along = target * jnp.matmul(vectors, way, precision="highest")
    # (v_i + t_i z)'(v_j + t_j z)
    gram = own + jnp.outer(target, target) * (
        along[:, None] + along[None, :] + jnp.sum(way**2)
    )
    ridge = penalty * jnp.trace(gram) / vectors.shape[1]
    dual = _solved(gram, ridge, target)
    weights = jnp.matmul(dual, vectors, precision="highest") + (dual @ target) * way
    return (x.task[1::2] - middle) @ weights, (y.task[1::2] - middle) @ weights


def _products(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.matmul(one, other.T, precision="highest")


def _solved(gram: jax.Array, ridge: jax.Array, right: jax.Array) -> jax.Array:
    whole = gram + ridge * jnp.eye(len(gram), dtype=gram.dtype)
    return jax.scipy.linalg.solve(whole, right, assume_a="pos")


_REFERENCE = "Blitzer et al. 2007, ACL; Ben-David et al. 2007, NeurIPS 19"
RECORDS: dict[str, Measure] = {
    "proxy_a": Measure(
        proxy_a,
        "sample",
        True,
        frozenset({"zero", "rotation"}),
        _REFERENCE,
        trainers,
    ),
    "proxy_a_margin": Measure(
        proxy_a_margin,
        "sample",
        True,
        frozenset({"zero", "rotation"}),
        _REFERENCE,
        trainers,
    ),
}
