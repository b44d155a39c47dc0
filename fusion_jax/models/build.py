"""From a config and a kind of task to a `Model`: pure functions over one tree."""

import functools
import zlib
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.encoder import Embeddings, Layer, Pooler
from fusion_jax.models.heads import HEADS, needs_pooler, reads_first_token
from fusion_jax.models.layers import initialise_kernel
from fusion_jax.types import Batch, Key, Model, Outputs, Params, Stage


@functools.lru_cache(maxsize=64)
def build_model(
    config: EncoderConfig, kind: str, num_labels: int, *, dtype: Any = jnp.float32
) -> Model:
    """Builds the encoder of `config` with the head of a kind of task.

    The model's `apply` is the fold of its stages: embed, layer_0 ..., head. Equal
    arguments give the same model, so that what was compiled for it serves again.

    Args:
      config: the encoder.
      kind: one of `HEADS`: single_label, multi_label, choice, span, token.
      num_labels: C; the span and choice heads have a fixed width and ignore it.
      dtype: of the matrix products and of the hidden states. Parameters keep their
        own dtype; layer norm, softmax and the head are float32 whatever it is.

    Returns:
      The model. Outputs: 'logits' float32, [B, C] for single_label, multi_label and
      choice, [B, T, C] for token, [B, T, 2] for span.

    Raises:
      ValueError: the kind is unknown or num_labels below 1.
    """
    if kind not in HEADS:
        raise ValueError(f"kind {kind!r} is unknown; known are {', '.join(HEADS)}")
    if num_labels < 1 and kind not in ("span", "choice"):
        raise ValueError(f"num_labels is {num_labels}; a {kind} head needs at least 1")
    pooler = Pooler(config) if needs_pooler(kind, config.family) else None
    head = HEADS[kind][config.family](config, num_labels)
    embeddings = Embeddings(config, dtype)
    # All layers are one module applied to different parameters.
    layer = Layer(config, dtype)
    last = Layer(config, dtype, first_only=reads_first_token(kind))

    def embed(
        params: Params, carry: None, batch: Batch, *, dropout_key: Key | None = None
    ) -> jax.Array:
        del carry
        own = params["encoder"]["embeddings"]
        return _run(embeddings, "embed", own, batch, dropout_key=dropout_key)

    def run_layer(
        name: str,
        params: Params,
        carry: jax.Array,
        batch: Batch,
        *,
        dropout_key: Key | None = None,
    ) -> jax.Array:
        own = params["encoder"][name]
        module = last if name == layers[-1] else layer
        return _run(module, name, own, carry, batch, dropout_key=dropout_key)

    def run_head(
        params: Params,
        carry: jax.Array,
        batch: Batch,
        *,
        dropout_key: Key | None = None,
    ) -> Outputs:
        if pooler is not None:
            variables = {"params": params["encoder"]["pooler"]}
            carry = cast(jax.Array, pooler.apply(variables, carry))
        return _run(head, "head", params["head"], carry, batch, dropout_key=dropout_key)

    layers = [f"layer_{i}" for i in range(config.num_layers)]
    head_owns = r"head/.*" if pooler is None else r"head/.*|encoder/pooler/.*"
    stages = (
        Stage("embed", r"encoder/embeddings/.*", embed),
        *(
            Stage(name, rf"encoder/{name}/.*", functools.partial(run_layer, name))
            for name in layers
        ),
        Stage("head", head_owns, run_head),
    )

    def apply(
        params: Params, batch: Batch, *, dropout_key: Key | None = None
    ) -> Outputs:
        carry: Any = None
        for stage in stages:
            carry = stage.apply(params, carry, batch, dropout_key=dropout_key)
        return carry

    def init(key: Key) -> Params:
        batch = _example_batch()
        hidden = jax.ShapeDtypeStruct((1, 2, config.hidden_size), dtype)
        one_layer = _shapes_of(layer, hidden, batch)
        encoder = {"embeddings": _shapes_of(embeddings, batch)}
        encoder |= dict.fromkeys(layers, one_layer)
        features = hidden
        if pooler is not None:
            encoder["pooler"] = _shapes_of(pooler, hidden)
            features = jax.ShapeDtypeStruct((1, config.hidden_size), jnp.float32)
        shapes = {"encoder": encoder, "head": _shapes_of(head, features, batch)}
        return trees.map_with_names(functools.partial(_initial_leaf, key), shapes)

    return Model(init=init, apply=apply, stages=stages)


def _fold(key: Key, name: str) -> Key:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _shapes_of(module: nn.Module, *inputs: Any) -> Params:
    """The module's parameters as shapes; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def _initial_leaf(key: Key, name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """The value a leaf starts from, by its own stream: no other leaf changes it."""
    if name.endswith("/bias"):
        return jnp.zeros(shape.shape, shape.dtype)
    if name.endswith("/scale"):
        return jnp.ones(shape.shape, shape.dtype)
    return _drawn(_fold(key, name), shape.shape, shape.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    # Compiled by itself, so that a leaf has the same bits whoever asks for it.
    return initialise_kernel(key, shape, dtype)


def _run(
    module: nn.Module, name: str, own: Params, *args: Any, dropout_key: Key | None
) -> Any:
    """Applies a stage's module; its dropout has a stream of its own, or is off."""
    if dropout_key is None:
        return module.apply({"params": own}, *args)
    streams = {"dropout": _fold(dropout_key, name)}
    return module.apply({"params": own}, *args, dropout=True, rngs=streams)


def _example_batch() -> Batch:
    """The least batch that every stage can be traced with."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    names = ("input_ids", "attention_mask", "token_type_ids", "choice_ids")
    return dict.fromkeys(names, tokens) | {"choice_mask": tokens}
