"""Per-example losses of every kind of task, and the weight of a row in their mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fusion_jax.types import Batch, Outputs

NEVER = -1e9
"""The logit of what cannot be chosen; finite, so that no difference is NaN."""

Loss = Callable[[Outputs, Batch], jax.Array]


def single_label(outputs: Outputs, batch: Batch) -> jax.Array:
    """Cross-entropy of one class among C.

    l_b = -log softmax(logits_b)[label_b], over the columns of `label_mask`.

    Args:
      outputs: 'logits' [B, C], or log-likelihoods of the labels' texts.
      batch: 'label' [B] int, and 'label_mask' [C] where some columns are padding.

    Returns:
      [B] float32; 0 where the label is no real column.
    """
    logits = _real_columns(_logits(outputs), batch.get("label_mask"))
    return _cross_entropy(logits, batch["label"])


def choice(outputs: Outputs, batch: Batch) -> jax.Array:
    """Cross-entropy of the gold candidate among those of the row.

    Args:
      outputs: 'logits' [B, C].
      batch: 'label' [B] int, 'choice_mask' [B, C].

    Returns:
      [B] float32; 0 where the gold candidate is not among the candidates (its
      mentions were cut off with the text).
    """
    logits = jnp.where(batch["choice_mask"] > 0, _logits(outputs), NEVER)
    return _cross_entropy(logits, batch["label"])


def multi_label(outputs: Outputs, batch: Batch) -> jax.Array:
    """Binary cross-entropy, the mean over the real labels.

    l_b = mean_c softplus(z_bc) - y_bc z_bc.

    Args:
      outputs: 'logits' [B, C].
      batch: 'labels' [B, C] of 0 and 1, and 'label_mask' [C] where some columns are
        padding.

    Returns:
      [B] float32.
    """
    logits = _logits(outputs)
    terms = jax.nn.softplus(logits) - batch["labels"] * logits
    mask = batch.get("label_mask")
    return _masked_mean(terms, jnp.ones_like(terms) if mask is None else mask)


def token(outputs: Outputs, batch: Batch) -> jax.Array:
    """Cross-entropy of the tags, the mean over the row's tagged tokens.

    Args:
      outputs: 'logits' [B, T, C].
      batch: 'tags' [B, T] int, -1 where a token is not tagged; 'label_mask' [C]
        where some columns are padding.

    Returns:
      [B] float32; 0 for a row without a tagged token.
    """
    logits = _real_columns(_logits(outputs), batch.get("label_mask"))
    tagged = (batch["tags"] >= 0).astype(jnp.float32)
    return _masked_mean(_cross_entropy(logits, batch["tags"]), tagged)


def span(outputs: Outputs, batch: Batch) -> jax.Array:
    """Mean of the cross-entropies of the answer's first and last token.

    The softmax runs over the tokens that may be answers, as the decoding does.

    Args:
      outputs: 'logits' [B, T, 2].
      batch: 'start', 'end' [B] int, -1 in a window without the answer;
        'context_mask' [B, T].

    Returns:
      [B] float32; 0 for a window without the answer.
    """
    logits = mask_context(_logits(outputs), batch)
    start = _cross_entropy(logits[..., 0], batch["start"])
    end = _cross_entropy(logits[..., 1], batch["end"])
    return 0.5 * (start + end) * _has_answer(batch)


LOSSES: dict[str, Loss] = {
    "single_label": single_label,
    "multi_label": multi_label,
    "choice": choice,
    "span": span,
    "token": token,
    # Scored by label likelihood: the logits are log-likelihoods of the labels' texts.
    "text_to_text": single_label,
}


def kind_of(batch: Batch) -> str:
    """The kind of task whose targets a batch holds, read off its entries.

    Raises:
      ValueError: the batch holds the targets of no kind.
    """
    for entry, kind in (
        ("tags", "token"),
        ("start", "span"),
        ("labels", "multi_label"),
        ("choice_mask", "choice"),
        ("label", "single_label"),
    ):
        if entry in batch:
            return kind
    raise ValueError(
        f"a batch with {', '.join(batch)} holds no targets; add label, labels, tags, "
        "or start and end"
    )


def mixed(outputs: Outputs, batch: Batch) -> jax.Array:
    """The loss of the kind that the batch is of: [B], for multi-task training."""
    return LOSSES[kind_of(batch)](outputs, batch)


def row_weight(kind: str, batch: Batch) -> jax.Array:
    """What each row weighs in a mean of losses: [B] float32 of 0 and 1.

    A padding row, a window without the answer, a row without a tag and a row whose
    gold candidate was cut off say nothing and weigh 0.
    """
    if kind == "mixed":
        kind = kind_of(batch)
    mask = batch["mask"].astype(jnp.float32)
    if kind == "span":
        return mask * _has_answer(batch)
    if kind == "token":
        return mask * jnp.any(batch["tags"] >= 0, axis=-1)
    if kind == "choice":
        return mask * _at(batch["choice_mask"].astype(jnp.float32), batch["label"])
    return mask


def mean_loss(kind: str, outputs: Outputs, batch: Batch) -> jax.Array:
    """The loss a training step minimises: sum_b w_b l_b / sum_b w_b, a scalar."""
    weight = row_weight(kind, batch)
    return jnp.sum(loss_of(kind)(outputs, batch) * weight) / jnp.maximum(
        jnp.sum(weight), 1.0
    )


def loss_of(kind: str) -> Loss:
    """`LOSSES[kind]`, with an error that lists the kinds there are."""
    if kind == "mixed":
        return mixed
    try:
        return LOSSES[kind]
    except KeyError:
        raise ValueError(
            f"no loss for kind {kind!r}; there are {', '.join(LOSSES)}"
        ) from None


def mask_context(logits: jax.Array, batch: Batch) -> jax.Array:
    """[B, T, 2] with `NEVER` outside the tokens that may be answers."""
    return jnp.where(batch["context_mask"][..., None] > 0, logits, NEVER)


def _logits(outputs: Outputs) -> jax.Array:
    return outputs["logits"].astype(jnp.float32)


def _real_columns(logits: jax.Array, label_mask: jax.Array | None) -> jax.Array:
    return logits if label_mask is None else jnp.where(label_mask > 0, logits, NEVER)


def _has_answer(batch: Batch) -> jax.Array:
    mask = batch["context_mask"].astype(jnp.float32)
    return _at(mask, batch["start"]) * _at(mask, batch["end"])


def _at(values: jax.Array, position: jax.Array) -> jax.Array:
    """values[..., position], 0 for a negative position: without a gather."""
    hit = jnp.arange(values.shape[-1]) == position[..., None]
    return jnp.sum(jnp.where(hit, values, 0.0), axis=-1)


def _cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax(logits)[label]; 0 where the label is negative or never possible."""
    chosen = _at(logits, label)
    possible = (label >= 0) & (chosen > 0.5 * NEVER)
    return jnp.where(possible, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)


def _masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    mask = jnp.broadcast_to(mask.astype(jnp.float32), values.shape)
    return jnp.sum(values * mask, -1) / jnp.maximum(jnp.sum(mask, -1), 1.0)
