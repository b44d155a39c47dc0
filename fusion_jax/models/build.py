"""From a config and a kind of task to a `Model`: pure functions over one tree."""

import functools
import math
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.models import decoder, encoder
from fusion_jax.models.config import FAMILIES, EncoderConfig
from fusion_jax.models.heads import HEADS, check_kind, needs_pooler, reads_one_token
from fusion_jax.models.layers import initialise_kernel
from fusion_jax.models.tapping import hooked
from fusion_jax.types import (
    Around,
    Batch,
    Key,
    Model,
    Outputs,
    Params,
    Stage,
    Tap,
    model_of,
)


class Blocks(NamedTuple):
    """What a family is made of.

    Attributes:
      embeddings: `(config, dtype) -> module` from a batch to [B, T, D].
      layer: `(config, dtype, one_token) -> module` from [B, T, D] to the same; with
        one_token to [B, 1, D], the token that a classifier of the family reads.
      final_norm: `(config) -> module` between the last layer and the head, if any.
      residual: kernels whose products are added to the hidden states, by a regular
        expression, where the family starts them smaller by sqrt(2 num_layers).
    """

    embeddings: Callable[[EncoderConfig, Any], nn.Module]
    layer: Callable[[EncoderConfig, Any, bool], nn.Module]
    final_norm: Callable[[EncoderConfig], nn.Module] | None = None
    residual: str | None = None


_ENCODER = Blocks(encoder.Embeddings, encoder.Layer)
BLOCKS: Mapping[str, Blocks] = {
    **dict.fromkeys(FAMILIES, _ENCODER),
    "gpt2": Blocks(
        decoder.Embeddings,
        decoder.Layer,
        decoder.final_norm,
        residual=r".*/(attention/output|mlp/down)/kernel",
    ),
}
"""family -> its modules; the heads are in `HEADS`."""


@functools.lru_cache(maxsize=64)
def build_model(
    config: EncoderConfig,
    kind: str,
    num_labels: int,
    *,
    dtype: Any = jnp.float32,
    every_token: bool = False,
) -> Model:
    """Builds the encoder or decoder of `config` with the head of a kind of task.

    The model's `apply` is the fold of its stages: embed, layer_0 ..., head. Equal
    arguments give the same model, so that what was compiled for it serves again.

    Args:
      config: the encoder or decoder.
      kind: one of `HEADS`: single_label, multi_label, choice, span, token. Decoders
        have the first two.
      num_labels: C; the span and choice heads have a fixed width and ignore it.
      dtype: of the matrix products and of the hidden states. Parameters keep their
        own dtype; layer norm, softmax and the head are float32 whatever it is.
      every_token: compute the last layer for every token, though the head may read
        one alone: the same outputs, but a tap sees what all tokens give it.

    Returns:
      The model. Outputs: 'logits' float32, [B, C] for single_label, multi_label and
      choice, [B, T, C] for token, [B, T, 2] for span.

    Raises:
      ValueError: the kind is unknown, the family has no head for it, or num_labels
        is below 1.
    """
    check_kind(kind, config.family)
    if num_labels < 1 and kind not in ("span", "choice"):
        raise ValueError(f"num_labels is {num_labels}; a {kind} head needs at least 1")
    blocks = BLOCKS[config.family]
    embeddings = blocks.embeddings(config, dtype)
    # All layers are one module applied to different parameters.
    layer = blocks.layer(config, dtype, False)
    last = blocks.layer(config, dtype, reads_one_token(kind) and not every_token)
    between = _between(config, kind)
    head = HEADS[kind][config.family](config, num_labels)

    def embed(
        params: Params,
        carry: None,
        batch: Batch,
        *,
        tap: Tap | None = None,
        around: Around | None = None,
        dropout_key: Key | None = None,
    ) -> jax.Array:
        del carry
        own = params["encoder"]["embeddings"]
        with hooked(tap, around, "encoder/embeddings"):
            return _run(embeddings, "embed", own, batch, dropout_key=dropout_key)

    def run_layer(
        name: str,
        params: Params,
        carry: jax.Array,
        batch: Batch,
        *,
        tap: Tap | None = None,
        around: Around | None = None,
        dropout_key: Key | None = None,
    ) -> jax.Array:
        own = params["encoder"][name]
        module = last if name == layers[-1] else layer
        with hooked(tap, around, f"encoder/{name}"):
            return _run(module, name, own, carry, batch, dropout_key=dropout_key)

    def run_head(
        params: Params,
        carry: jax.Array,
        batch: Batch,
        *,
        tap: Tap | None = None,
        around: Around | None = None,
        dropout_key: Key | None = None,
    ) -> Outputs:
        if not reads_one_token(kind) and "input_ids" in batch:
            # Virtual tokens, which stand before the text, have no place in what is
            # said of every token.
            carry = carry[:, -jnp.shape(batch["input_ids"])[1] :]
        for name, module in between.items():
            variables = {"params": params["encoder"][name]}
            with hooked(tap, around, f"encoder/{name}"):
                carry = cast(jax.Array, module.apply(variables, carry))
        own = params["head"]
        with hooked(tap, around, "head"):
            return _run(head, "head", own, carry, batch, dropout_key=dropout_key)

    def body_of(module: nn.Module) -> Callable[..., jax.Array]:
        def body(
            own: Params,
            carry: jax.Array,
            batch: Batch,
            *,
            tap: Tap | None = None,
            around: Around | None = None,
        ) -> jax.Array:
            with hooked(tap, around, ""):
                return cast(jax.Array, module.apply({"params": own}, carry, batch))

        return body

    layers = [f"layer_{i}" for i in range(config.num_layers)]
    inner_body, last_body = body_of(layer), body_of(last)
    if last == layer:
        last_body = inner_body
    head_owns = "|".join([r"head/.*", *(rf"encoder/{name}/.*" for name in between)])
    stages = (
        Stage("embed", r"encoder/embeddings/.*", embed),
        *(
            Stage(
                name,
                rf"encoder/{name}/.*",
                functools.partial(run_layer, name),
                prefix=f"encoder/{name}",
                body=last_body if name == layers[-1] else inner_body,
            )
            for name in layers
        ),
        Stage("head", head_owns, run_head),
    )

    def init(key: Key) -> Params:
        batch = _example_batch()
        hidden = jax.ShapeDtypeStruct((1, 2, config.hidden_size), dtype)
        one_layer = _shapes_of(layer, hidden, batch)
        own = {"embeddings": _shapes_of(embeddings, batch)}
        own |= dict.fromkeys(layers, one_layer)
        features: Any = hidden
        for name, module in between.items():
            own[name] = _shapes_of(module, features)
            features = jax.eval_shape(module.apply, {"params": own[name]}, features)
        shapes = {"encoder": own, "head": _shapes_of(head, features, batch)}
        initial = functools.partial(_initial_leaf, key, config)
        return trees.map_with_names(initial, shapes)

    return model_of(init, stages)


def _between(config: EncoderConfig, kind: str) -> dict[str, nn.Module]:
    """What stands between the last layer and the head, by its name in the tree."""
    final_norm = BLOCKS[config.family].final_norm
    if final_norm is not None:
        return {"final_norm": final_norm(config)}
    if needs_pooler(kind, config.family):
        return {"pooler": encoder.Pooler(config)}
    return {}


def _fold(key: Key, name: str) -> Key:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _shapes_of(module: nn.Module, *inputs: Any) -> Params:
    """The module's parameters as shapes; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def _initial_leaf(
    key: Key, config: EncoderConfig, name: str, shape: jax.ShapeDtypeStruct
) -> jax.Array:
    """The value a leaf starts from, by its own stream: no other leaf changes it."""
    if name.endswith("/bias"):
        return jnp.zeros(shape.shape, shape.dtype)
    if name.endswith("/scale"):
        return jnp.ones(shape.shape, shape.dtype)
    drawn = _drawn(_fold(key, name), shape.shape, shape.dtype)
    residual = BLOCKS[config.family].residual
    if residual is not None and re.fullmatch(residual, name):
        return drawn / math.sqrt(2 * config.num_layers)
    return drawn


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
