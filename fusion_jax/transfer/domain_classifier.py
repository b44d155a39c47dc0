"""How well a classifier tells two tasks apart: proxy A-distance.

d_A = 2 (1 - 2 e), e the error of a linear classifier on texts that it was not trained
on, each task with the same weight. The texts at even places of a sample train, those at
odd places test: the order of a sample is a seeded draw.
"""

import jax
import jax.numpy as jnp

from fusion_jax.transfer.measure import Measure

PENALTY = 1.0
_TIE = 1e-9  # of a score: neither task


def proxy_a(
    x: jax.Array, y: jax.Array, *, penalty: jax.Array | float = PENALTY
) -> jax.Array:
    """2 (1 - 2 e), e the share of texts on the wrong side; in [-2, 2].

    The classifier is ridge regression on +1 and -1, in closed form:
      w = argmin_w ||A w - t||^2 + p tr(A'A) / D ||w||^2
    with A the texts of both that train, centred. Strongly regularised, since domains
    that a classifier parts without error are all at 2.

    Args:
      x: [n, D].
      y: [n, D].
      penalty: p, in units of the mean variance.

    Reference: Ben-David et al. 2007, Blitzer et al. 2007.
    """
    left, right = _scores(x, y, penalty)

    def wrong(scores: jax.Array) -> jax.Array:
        return jnp.mean(jnp.where(jnp.abs(scores) < _TIE, 0.5, scores < 0))

    return 2 * (1 - (wrong(left) + wrong(-right)))


def proxy_a_margin(
    x: jax.Array, y: jax.Array, *, penalty: jax.Array | float = PENALTY
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
    x: jax.Array, y: jax.Array, penalty: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Scores f of the texts that test: of x, which are +1, and of y, which are -1."""
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(
            f"proxy A-distance: samples of {len(x)} and {len(y)} vectors; give both "
            "one size of 4 or more"
        )
    train = jnp.concatenate([x[::2], y[::2]])
    half = len(train) // 2
    target = jnp.concatenate([jnp.ones(half), -jnp.ones(half)]).astype(train.dtype)
    centre = jnp.mean(train, axis=0)
    train = train - centre
    width = train.shape[1]
    ridge = penalty * jnp.sum(train**2) / width
    # The smaller of the two normal equations.
    if len(train) <= width:
        gram = jnp.matmul(train, train.T, precision="highest")
        weights = train.T @ _solved(gram, ridge, target)
    else:
        gram = jnp.matmul(train.T, train, precision="highest")
        weights = _solved(gram, ridge, train.T @ target)
    return (x[1::2] - centre) @ weights, (y[1::2] - centre) @ weights


def _solved(gram: jax.Array, ridge: jax.Array, right: jax.Array) -> jax.Array:
    whole = gram + ridge * jnp.eye(len(gram), dtype=gram.dtype)
    return jax.scipy.linalg.solve(whole, right, assume_a="pos")


_REFERENCE = "Blitzer et al. 2007, ACL; Ben-David et al. 2007, NeurIPS 19"
RECORDS: dict[str, Measure] = {
    "proxy_a": Measure(
        proxy_a, "sample", True, frozenset({"zero", "rotation"}), _REFERENCE
    ),
    "proxy_a_margin": Measure(
        proxy_a_margin, "sample", True, frozenset({"zero", "rotation"}), _REFERENCE
    ),
}
