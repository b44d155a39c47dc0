"""The encoder in Linen: embeddings, transformer layers (post-norm), pooler."""

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
    """Layer norm of word + position (+ token type) embeddings."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: Batch, *, dropout: bool = False) -> jax.Array:
        """input_ids [B, T] (and token_type_ids [B, T]) -> [B, T, D].

        More rows than ids may come out of the word table: virtual tokens, which stand
        before the text and take the first positions.
        """
        config = self.config
        ids = jnp.asarray(batch["input_ids"])
        x = Table(config.vocab_size, config.hidden_size, name="word")(ids)
        length = x.shape[1]
        first = config.pad_token_id + 1 if config.family == "roberta" else 0
        if first + length > config.max_positions:
            raise ValueError(
                f"batch has {length} tokens a row; this {config.family} encoder has "
                f"positions for {config.max_positions - first}: encode with a smaller "
                "max_length"
            )
        position = Table(config.max_positions, config.hidden_size, name="position")
        if config.family == "roberta":
            # RoBERTa counts real tokens from pad + 1; padding stays at pad.
            real = (ids != config.pad_token_id).astype(jnp.int32)
            virtual = ((0, 0), (length - ids.shape[1], 0))
            real = jnp.pad(real, virtual, constant_values=1)
            places = jnp.cumsum(real, axis=1) * real + config.pad_token_id
            x = x + position(places)
        else:
            x = x + position(jnp.arange(length))
        if config.type_vocab_size:
            types = Table(config.type_vocab_size, config.hidden_size, name="token_type")
            x = x + _type_rows(types, batch, x.shape[:2])
        x = LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(x)
        return Dropout(config.hidden_dropout, name="dropout")(x, dropout)


class Attention(nn.Module):
    """Norm(x + output(softmax(q k' / sqrt(d)) v)) over H heads."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, mask: jax.Array, dropout: bool
    ) -> jax.Array:
        """[B, Q, D] attend to context [B, T, D] where mask [B, T] -> [B, Q, D].

        Keys and values may come in greater number than the mask says: the further ones
        stand in front, and everybody sees them.
        """
        config = self.config
        width, heads = config.hidden_size, config.num_heads
        query, key, value = (
            _split_heads(Dense(width, self.dtype, name=name)(inputs), heads)
            for name, inputs in (("query", x), ("key", context), ("value", context))
        )
        query = query * (1.0 / math.sqrt(width // heads))
        scores = jnp.einsum(
            "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
        )
        in_front = ((0, 0), (key.shape[2] - mask.shape[1], 0))
        mask = jnp.pad(mask, in_front, constant_values=True)
        hidden = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
        scores = scores + hidden[:, None, None, :]
        # Softmax divided after the product with the values, where there are fewer
        # elements: [.., d] instead of [.., T]. Dropout commutes with it.
        peak = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - peak)
        total = weights.sum(-1, keepdims=True)
        weights = Dropout(config.attention_dropout, name="dropout")(weights, dropout)
        mixed = jnp.einsum(
            "bhqk,bhkd->bhqd",
            weights.astype(self.dtype),
            value,
            preferred_element_type=jnp.float32,
        )
        mixed = jnp.swapaxes(mixed / total, 1, 2).reshape(x.shape)
        y = Dense(width, self.dtype, name="output")(mixed)
        y = Dropout(config.hidden_dropout, name="output_dropout")(y, dropout)
        return LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(x + y)


class Mlp(nn.Module):
    """Norm(x + down(activation(up(x))))."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, dropout: bool) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        config = self.config
        y = Dense(config.intermediate_size, self.dtype, name="up")(x)
        y = ACTIVATIONS[config.activation](y)
        y = Dense(config.hidden_size, self.dtype, name="down")(y)
        y = Dropout(config.hidden_dropout, name="dropout")(y, dropout)
        return LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(x + y)


class Layer(nn.Module):
    """One transformer layer: attention, then the two-layer perceptron.

    With `first_only` it gives the first token alone, which is all that a head over the
    first token reads of the last layer: the same numbers for a sixth of the products.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32
    first_only: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, batch: Batch, *, dropout: bool = False
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D], or [B, 1, D] with `first_only`."""
        mask = jnp.asarray(batch["attention_mask"]) > 0
        attention = Attention(self.config, self.dtype, name="attention")
        x = attention(x[:, :1] if self.first_only else x, x, mask, dropout)
        return Mlp(self.config, self.dtype, name="mlp")(x, dropout)


class Pooler(nn.Module):
    """tanh(W x_0 + b) of the first token; its leaves are the linear layer's own."""

    config: EncoderConfig

    def setup(self) -> None:
        """One linear layer, without a name between."""
        self.dense = Dense(self.config.hidden_size)
        nn.share_scope(self, self.dense)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, D] float32."""
        return jnp.tanh(self.dense(hidden[:, 0].astype(jnp.float32)))


def _split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, D] -> [B, H, T, d]."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], heads, -1), 1, 2)


def _type_rows(table: Table, batch: Batch, shape: tuple[int, ...]) -> jax.Array:
    """The token type rows [B, T, D]; with one type or none given, row 0 [D]."""
    if table.rows == 1 or "token_type_ids" not in batch:
        return table(jnp.zeros((), jnp.int32))
    return table(jnp.asarray(batch["token_type_ids"]).reshape(shape))
