"""GPT-2 in Linen: embeddings, pre-norm causal layers, and what decoders share.

Another decoder takes `seen_tokens`, `attend` and `last_token` from here and brings a
layer of its own.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fusion_jax.models.activations import ACTIVATIONS
from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.layers import Dense, Dropout, LayerNorm, Table
from fusion_jax.types import Batch


class Embeddings(nn.Module):
    """Word + position embeddings, without a norm.

    Positions count from the start of the row whatever its padding, as the Hugging Face
    class does where it is given no positions; so left padding moves a text.
    Token types are not read: GPT-2 has no table of them.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: Batch, *, dropout: bool = False) -> jax.Array:
        """input_ids [B, T] -> [B, T, D], with virtual tokens more, as in an encoder."""
        config = self.config
        ids = jnp.asarray(batch["input_ids"])
        x = Table(config.vocab_size, config.hidden_size, name="word")(ids)
        length = x.shape[1]
        if length > config.max_positions:
            raise ValueError(
                f"batch has {length} tokens a row; this {config.family} decoder has "
                f"positions for {config.max_positions}: encode with a smaller "
                "max_length"
            )
        position = Table(config.max_positions, config.hidden_size, name="position")
        x = (x + position(jnp.arange(length))).astype(self.dtype)
        return Dropout(config.input_dropout, name="dropout")(x, dropout)


class Attention(nn.Module):
    """x + output(attend(q, k, v)) with [q, k, v] = qkv(Norm(x)), packed as stored."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, dropout: bool, last_only: bool
    ) -> jax.Array:
        """[B, T, D], mask [B, T] -> [B, T, D], or [B, 1, D] with `last_only`."""
        config = self.config
        width, heads = config.hidden_size, config.num_heads
        y = LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(x)
        packed = Dense(3 * width, self.dtype, name="qkv")(y)
        query, key, value = jnp.split(packed, 3, axis=-1)
        if last_only:
            query, x = last_token(query, mask), last_token(x, mask)
        query, key, value = (
            a.reshape(*a.shape[:2], heads, -1) for a in (query, key, value)
        )
        seen = seen_tokens(mask, last_only=last_only)
        drop = Dropout(config.attention_dropout, name="dropout")
        mixed = attend(query, key, value, seen, drop, dropout)
        y = Dense(width, self.dtype, name="output")(mixed.reshape(x.shape))
        return x + Dropout(config.hidden_dropout, name="output_dropout")(y, dropout)


class Mlp(nn.Module):
    """x + down(activation(up(Norm(x))))."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, dropout: bool) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        config = self.config
        y = LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(x)
        y = Dense(config.intermediate_size, self.dtype, name="up")(y)
        y = ACTIVATIONS[config.activation](y)
        y = Dense(config.hidden_size, self.dtype, name="down")(y)
        return x + Dropout(config.hidden_dropout, name="dropout")(y, dropout)


class Layer(nn.Module):
    """One GPT-2 layer: causal attention, then the two-layer perceptron.

    With `last_only` it gives the last real token of each row alone, which is all that a
    head over that token reads of the last layer. The packed product still runs over all
    tokens, for their keys and values; all after it runs over one.

    Reference: Radford et al. 2019, Language Models are Unsupervised Multitask Learners.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32
    last_only: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D], or [B, 1, D] with `last_only`."""
        mask = jnp.asarray(batch["attention_mask"])
        attention = Attention(self.config, self.dtype, name="attention")
        x = attention(x, mask, dropout, self.last_only)
        return Mlp(self.config, self.dtype, name="mlp")(x, dropout)


def final_norm(config: EncoderConfig) -> nn.Module:
    """The norm after the last layer, float32: a head reads it next."""
    return LayerNorm(config.layer_norm_eps)


def last_place(mask: jax.Array) -> jax.Array:
    """[B, T] -> [B]: where each row has its last real token; 0 in a row of none."""
    return (jnp.arange(mask.shape[1]) * (mask > 0)).max(1)


def last_token(x: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, T, D], mask [B, T] -> [B, 1, D]: the last real token of each row."""
    return jnp.take_along_axis(x, last_place(mask)[:, None, None], axis=1)


def seen_tokens(mask: jax.Array, *, last_only: bool = False) -> jax.Array:
    """What each token may look at: the real ones up to itself.

    Args:
      mask: [B, T], 1 for a real token.
      last_only: for the last real token of each row alone.

    Returns:
      bool [B, T, T], query before key; [B, 1, T] with `last_only`.
    """
    places = jnp.arange(mask.shape[1])
    queries = last_place(mask)[:, None] if last_only else places[None]
    return (mask[:, None] > 0) & (places <= queries[..., None])


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: jax.Array,
    drop: Dropout,
    dropout: bool,
) -> jax.Array:
    """softmax(q k' / sqrt(d)) v over the tokens seen; the softmax is float32.

    Args:
      query: [B, Q, H, d].
      key: [B, T, H, d].
      value: [B, T, H, d].
      seen: bool [B, Q, T]. A token that sees none gets the mean of all values, so that
        a row of padding stays finite.
      drop: applied to the weights.
      dropout: whether `drop` is active.

    Returns:
      [B, Q, H, d] float32.
    """
    query = query * (1.0 / math.sqrt(query.shape[-1]))
    scores = jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    # Divided after the product with the values, where there are fewer elements;
    # dropout commutes with it.
    peak = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = weights.sum(-1)
    mixed = jnp.einsum(
        "bhqk,bkhd->bqhd",
        drop(weights, dropout).astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return mixed / jnp.swapaxes(total, 1, 2)[..., None]
