"""Heads of each kind of task, exactly as the Hugging Face classes have them."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.decoder import last_token
from fusion_jax.models.layers import Dense, Dropout
from fusion_jax.types import Batch, Outputs

# What stands where there is no candidate: finite, so that gradients stay finite.
NO_CANDIDATE = -1e9


class PooledClassifier(nn.Module):
    """BERT: dropout and linear over the pooled first token [B, D]."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(
        self, pooled: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> Outputs:
        """[B, D] -> logits [B, C]."""
        del batch
        x = Dropout(self.config.head_dropout, name="dropout")(pooled, dropout)
        return {"logits": Dense(self.num_labels, name="classifier")(x)}


class DenseClassifier(nn.Module):
    """RoBERTa: dropout, dense, tanh, dropout, linear over the first token."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(
        self, hidden: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> Outputs:
        """[B, T, D] -> logits [B, C]."""
        del batch
        rate = self.config.head_dropout
        x = Dropout(rate, name="input_dropout")(hidden[:, 0], dropout)
        x = jnp.tanh(Dense(self.config.hidden_size, name="dense")(x))
        x = Dropout(rate, name="dropout")(x, dropout)
        return {"logits": Dense(self.num_labels, name="classifier")(x)}


class ReluClassifier(nn.Module):
    """DistilBERT: dense, relu, dropout, linear over the first token."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(
        self, hidden: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> Outputs:
        """[B, T, D] -> logits [B, C]."""
        del batch
        x = Dense(self.config.hidden_size, name="pre_classifier")(hidden[:, 0])
        x = Dropout(self.config.head_dropout, name="dropout")(jax.nn.relu(x), dropout)
        return {"logits": Dense(self.num_labels, name="classifier")(x)}


class LastTokenClassifier(nn.Module):
    """GPT-2: linear without bias over the last real token.

    That token is the last 1 of attention_mask. transformers takes the last id that is
    not its padding id: another token where a text ends in that id itself.
    """

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(
        self, hidden: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> Outputs:
        """[B, T, D], or [B, 1, D] of the last tokens alone -> logits [B, C]."""
        del dropout
        if hidden.shape[1] > 1:
            hidden = last_token(hidden, jnp.asarray(batch["attention_mask"]))
        classifier = Dense(self.num_labels, use_bias=False, name="classifier")
        return {"logits": classifier(hidden[:, 0])}


class TokenClassifier(nn.Module):
    """Dropout and linear over every token."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(
        self, hidden: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> Outputs:
        """[B, T, D] -> logits [B, T, C]."""
        del batch
        config = self.config
        # DistilBERT's token classifier has the encoder's rate, not a head's own.
        distilbert = config.family == "distilbert"
        rate = config.hidden_dropout if distilbert else config.head_dropout
        x = Dropout(rate, name="dropout")(hidden, dropout)
        return {"logits": Dense(self.num_labels, name="classifier")(x)}


class SpanHead(nn.Module):
    """Start and end scores of every token; where dropout is DistilBERT's."""

    config: EncoderConfig
    num_labels: int = 2

    @nn.compact
    def __call__(
        self, hidden: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> Outputs:
        """[B, T, D] -> logits [B, T, 2]."""
        del batch
        if self.config.family == "distilbert":
            rate = self.config.hidden_dropout
            hidden = Dropout(rate, name="dropout")(hidden, dropout)
        return {"logits": Dense(2, name="span")(hidden)}


class ChoiceHead(nn.Module):
    """One score a token; a candidate's logit sums over its mentions.

    logit_c = log sum exp(score_t) over the tokens t where a mention of c starts, the
    pointer sum. Reference: Kadlec et al. 2016, arXiv 1603.01547.
    """

    config: EncoderConfig
    num_labels: int = 1

    @nn.compact
    def __call__(
        self, hidden: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> Outputs:
        """[B, T, D], choice_ids [B, T], choice_mask [B, C] -> logits [B, C]."""
        x = Dropout(self.config.head_dropout, name="dropout")(hidden, dropout)
        scores = Dense(1, name="choice")(x)
        mask = jnp.asarray(batch["choice_mask"]) > 0
        candidates = jnp.arange(mask.shape[1])
        mentioned = jnp.asarray(batch["choice_ids"])[..., None] == candidates
        logits = jax.nn.logsumexp(jnp.where(mentioned, scores, NO_CANDIDATE), axis=1)
        return {"logits": jnp.where(mask, logits, NO_CANDIDATE)}


_CLASSIFIERS = {
    "bert": PooledClassifier,
    "roberta": DenseClassifier,
    "distilbert": ReluClassifier,
}
_LAST_TOKEN_CLASSIFIERS = {"gpt2": LastTokenClassifier}
HEADS: Mapping[str, Mapping[str, type[nn.Module]]] = {
    "single_label": _CLASSIFIERS | _LAST_TOKEN_CLASSIFIERS,
    "multi_label": _CLASSIFIERS | _LAST_TOKEN_CLASSIFIERS,
    "choice": dict.fromkeys(_CLASSIFIERS, ChoiceHead),
    "span": dict.fromkeys(_CLASSIFIERS, SpanHead),
    "token": dict.fromkeys(_CLASSIFIERS, TokenClassifier),
}
"""kind -> family -> module; the keys are the kinds `build_model` knows."""


def check_kind(kind: str, family: str) -> None:
    """Raises a ValueError unless the family has a head of this kind."""
    if kind not in HEADS:
        raise ValueError(f"kind {kind!r} is unknown; known are {', '.join(HEADS)}")
    if family not in HEADS[kind]:
        own = ", ".join(kind for kind in HEADS if family in HEADS[kind])
        raise ValueError(
            f"{family} has no head of kind {kind!r}; its kinds are {own}. Choose one "
            "of these, or a model of another family"
        )


def reads_one_token(kind: str) -> bool:
    """Whether the head reads one token alone: an encoder's first, a decoder's last."""
    return kind in ("single_label", "multi_label")


def needs_pooler(kind: str, family: str) -> bool:
    """Whether the head of this kind reads the pooled first token."""
    return HEADS[kind][family] is PooledClassifier
