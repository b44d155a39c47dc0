"""A model with a module: the same stages, whose layers are called through a hook."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from fusion_jax.peft.config import PeftConfig, length_of
from fusion_jax.peft.module import init_module, with_module
from fusion_jax.peft.table import KINDS
from fusion_jax.types import (
    Around,
    Batch,
    Key,
    Model,
    Params,
    Stage,
    Tap,
    model_of,
)


@functools.lru_cache(maxsize=64)
def attach(model: Model, config: PeftConfig) -> Model:
    """The model whose parameters are the host's and a module's in one tree.

    A layer is changed where the tree has leaves of the module for it. Equal arguments
    give the same model, so that what was compiled for it serves again.

    Args:
      model: of the host; is not changed.
      config: of the module.

    Returns:
      A model of `with_module(host, module.params)`, of the same outputs. Taps see the
      host's layers with the inputs that the module gives them.
    """
    kind = KINDS[config.kind]
    # A shared body knows its layer's number as little as leaves outside the layer.
    across = kind.across if _across(config) else ""
    alone = not (across or config.alpha_pattern)

    def wrapped(run: Callable[..., Any], takes_key: bool) -> Callable[..., Any]:
        def apply(
            params: Params,
            carry: Any,
            batch: Batch,
            *,
            tap: Tap | None = None,
            around: Around | None = None,
            dropout_key: Key | None = None,
        ) -> Any:
            own = kind.around(config, params, dropout_key)
            keys = {"dropout_key": dropout_key} if takes_key else {}
            return run(
                params,
                carry,
                _lengthened(config, batch),
                tap=tap,
                around=_nested(around, own),
                **keys,
            )

        return apply

    bodies: dict[Any, Callable[..., Any]] = {
        stage.body: wrapped(stage.body, False)
        for stage in model.stages
        if stage.body is not None and alone
    }
    stages = tuple(
        Stage(
            name=stage.name,
            owns=f"{stage.owns}|{across}" if across and stage.prefix else stage.owns,
            apply=wrapped(stage.apply, True),
            prefix=stage.prefix if alone else "",
            body=bodies.get(stage.body),
        )
        for stage in model.stages
    )

    def init(key: Key) -> Params:
        host = model.init(key)
        return with_module(host, init_module(config, host, key).params)

    return model_of(init, stages)


def _across(config: PeftConfig) -> bool:
    """Whether several layers read one leaf: of a flat prefix none do."""
    return config.kind != "prefix" or config.mlp_width > 0


def _nested(outer: Around | None, inner: Around) -> Around:
    """The hook that a caller gives stands around that of the module."""
    if outer is None:
        return inner
    return lambda name, call, x: outer(name, lambda y: inner(name, call, y), x)


def _lengthened(config: PeftConfig, batch: Batch) -> Batch:
    """The batch of a prompt: its virtual tokens are real ones, of type 0."""
    if config.kind != "prompt":
        return batch
    padded = dict(batch)
    for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
        if name in batch:
            padded[name] = jnp.pad(
                jnp.asarray(batch[name]),
                ((0, 0), (length_of(config), 0)),
                constant_values=value,
            )
    return padded
