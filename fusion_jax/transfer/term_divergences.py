"""Divergences of two distributions over terms; p of the source, q of the target.

All take positive vectors [V] of sum one (`terms.distribution` smooths), but the
overlap, which takes presence, and give a scalar in their dtype. They are for float64: a
sum over ten thousand small terms loses five digits in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.transfer.measure import Known, Measure

RENYI_ALPHA = 0.99


def kl(p: Known, q: Known) -> jax.Array:
    """KL(p || q) = sum_v p_v ln(p_v / q_v), in nats, of known logarithms."""
    return jnp.sum(p.task * (p.own - q.own))


def kl_reversed(p: Known, q: Known) -> jax.Array:
    """KL(q || p): a measure of its own, as KL differs by direction."""
    return kl(q, p)


def negative_entropy(p: jax.Array) -> jax.Array:
    """sum_v p_v ln p_v."""
    return jnp.sum(p * jnp.log(p))


def jensen_shannon(p: Known, q: Known) -> jax.Array:
    """(KL(p || r) + KL(q || r)) / 2 with r = (p + q) / 2, in bits: in [0, 1].

    H(r) - (H(p) + H(q)) / 2. The divergence itself; SciPy's `jensenshannon` is its
    square root.
    """
    middle = negative_entropy((p.task + q.task) / 2)
    return ((p.own + q.own) / 2 - middle) / jnp.log(2.0)


class Powers(NamedTuple):
    """A distribution to both powers.

    Attributes:
      high: p^alpha [V].
      low: p^(1 - alpha) [V].
    """

    high: jax.Array
    low: jax.Array


def powers(p: jax.Array, *, alpha: jax.Array | float = RENYI_ALPHA) -> Powers:
    """To the powers alpha and 1 - alpha."""
    return Powers(p**alpha, p ** (1 - alpha))


def renyi(p: Known, q: Known, *, alpha: jax.Array | float = RENYI_ALPHA) -> jax.Array:
    """ln(sum_v p_v^alpha q_v^(1 - alpha)) / (alpha - 1), alpha in (0, 1)."""
    return jnp.log(jnp.sum(p.own.high * q.own.low)) / (alpha - 1)


def bhattacharyya(p: Known, q: Known) -> jax.Array:
    """-ln sum_v sqrt(p_v q_v), of known roots: half of Renyi's with alpha = 1/2."""
    return -jnp.log(jnp.sum(p.own * q.own))


def total_variation(p: jax.Array, q: jax.Array) -> jax.Array:
    """sum_v |p_v - q_v| / 2, in [0, 1]."""
    return jnp.sum(jnp.abs(p - q)) / 2


def euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    """||x - y||, of any two vectors."""
    return jnp.sqrt(jnp.sum((x - y) ** 2))


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """1 - x.y / (||x|| ||y||), of any two vectors; in [0, 2], NaN of a zero vector."""
    norms = jnp.sqrt(jnp.sum(x**2) * jnp.sum(y**2))
    return 1 - jnp.sum(x * y) / norms


def vocabulary_overlap(x: jax.Array, y: jax.Array) -> jax.Array:
    """1 - |V_s and V_t| / |V_s or V_t| of presences [V]: Jaccard's distance.

    The vocabularies are those of the study's most frequent terms (`terms.vocabulary`):
    a rarer word of one task alone does not count.
    """
    return 1 - jnp.sum(jnp.minimum(x, y)) / jnp.sum(jnp.maximum(x, y))


_TERMS = frozenset({"zero", "positive"})
_RUDER = "Ruder and Plank 2017, arXiv:1707.05246"
RECORDS: dict[str, Measure] = {
    "kl": Measure(kl, "terms", False, _TERMS, _RUDER, jnp.log),
    "kl_reversed": Measure(kl_reversed, "terms", False, _TERMS, _RUDER, jnp.log),
    "jensen_shannon": Measure(
        jensen_shannon, "terms", True, _TERMS, _RUDER, negative_entropy
    ),
    "renyi": Measure(renyi, "terms", False, _TERMS, _RUDER, powers),
    "bhattacharyya": Measure(bhattacharyya, "terms", True, _TERMS, _RUDER, jnp.sqrt),
    "total_variation": Measure(total_variation, "terms", True, _TERMS, _RUDER),
    "term_euclidean": Measure(euclidean, "terms", True, _TERMS, _RUDER),
    "term_cosine": Measure(cosine, "terms", True, _TERMS, _RUDER),
    "vocabulary_overlap": Measure(
        vocabulary_overlap, "presence", True, _TERMS, "Jaccard 1901"
    ),
    "tfidf_cosine": Measure(cosine, "tfidf", True, _TERMS, "Salton 1988"),
}
