"""Scores whose squared gradients are one example's Fisher, and labels that are drawn.

The expectation is exact without a backward pass for every class. For a softmax over C
logits z put the classes in a row and let y be found by C - 1 questions: is it class j,
given that it is none before? The answer is a Bernoulli variable with the log-odds

    u_j = z_j - log sum_{i > j} exp z_i,

and the question comes up with probability q_j = sum_{i >= j} p_i. By the chain rule of
Fisher information, with h_j = sigmoid(u_j),

    E_y [ (d log p(y) / d theta)^2 ] = sum_{j < C - 1} s_j^2 (d u_j / d theta)^2,
    s_j^2 = q_j h_j (1 - h_j).

The vectors s_j d u_j / d z = s_j (e_j - softmax of the tail) are the columns of the
Cholesky factor of diag(p) - p p^T. Nothing is divided: the derivative of u_j stays
between -1 and 1 in z, and s_j goes to 0 where p does. For C = 2 it is
sqrt(p_0 p_1) (dz_0 - dz_1).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fusion_jax.evaluation.losses import NEVER, mask_context
from fusion_jax.types import Batch, Key, Outputs


def class_scores(z: jax.Array) -> jax.Array:
    """s_j u_j, [C] -> [C - 1], the s_j held fixed."""
    later = np.triu(np.ones((len(z), len(z)), bool), 1)[:-1]
    tail = jax.nn.logsumexp(jnp.where(later, z, NEVER), axis=-1)
    u = z[:-1] - tail
    fixed, rest = lax.stop_gradient((u, tail))
    reached = jnp.logaddexp(lax.stop_gradient(z[:-1]), rest)
    log_square = (
        reached
        - jax.nn.logsumexp(lax.stop_gradient(z))
        + jax.nn.log_sigmoid(fixed)
        + jax.nn.log_sigmoid(-fixed)
    )
    return jnp.exp(log_square / 2) * u


def label_scores(z: jax.Array) -> jax.Array:
    """sqrt(p_c (1 - p_c)) z_c, [C] -> [C], the roots held fixed."""
    fixed = lax.stop_gradient(z)
    log_square = jax.nn.log_sigmoid(fixed) + jax.nn.log_sigmoid(-fixed)
    return jnp.exp(log_square / 2) * z


def drawn(kind: str, outputs: Outputs, row: Batch, key: Key) -> dict[str, jax.Array]:
    """Targets of one row, drawn from what the model says of it."""
    logits = outputs["logits"].astype(jnp.float32)
    if kind == "multi_label":
        # A label that is no real column has no part in the loss, whatever is drawn.
        drawn = jax.random.bernoulli(key, jax.nn.sigmoid(logits))
        return {"labels": drawn.astype(jnp.float32)}
    if kind == "span":
        logits = mask_context(logits, row)
        first, last = jax.random.split(key)
        return {
            "start": jax.random.categorical(first, logits[..., 0]),
            "end": jax.random.categorical(last, logits[..., 1]),
        }
    mask = row.get("choice_mask" if kind == "choice" else "label_mask")
    if mask is not None:
        logits = jnp.where(mask > 0, logits, NEVER)
    if kind == "token":
        # A key for every place: what is drawn does not depend on the padding.
        places = jnp.arange(logits.shape[1])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        tags = jax.vmap(jax.random.categorical)(keys, logits[0])[None]
        return {"tags": jnp.where(row["tags"] >= 0, tags, -1)}
    return {"label": jax.random.categorical(key, logits)}
