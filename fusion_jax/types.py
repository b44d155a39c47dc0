"""The types that pass between rooms: parameter trees, batches, and a model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Params = Mapping[str, Any]
"""Nested dict of arrays; leaf names read 'encoder/layer_0/attention/query/kernel'."""

ParamStack = Params
"""The same tree, every leaf with a leading expert axis: [K, ...]."""

Coefficients = jax.Array | Params
"""[K], or one row for each parameter group [G, K], or a tree of [K]."""

Batch = Mapping[str, Any]
"""Arrays whose leading axis is the example; 'mask' [B] is 1 for a real row."""

Outputs = Mapping[str, jax.Array]
"""What a model says of a batch; a kind of task reads the entries it knows."""

Key = jax.Array
"""A typed key of `jax.random.key`."""


Tap = Callable[[str, jax.Array, jax.Array], jax.Array | None]
"""`(name, x, y) -> y or None`, called for every linear layer y = x W + b while a
forward pass is traced: the name of its kernel leaf, x [..., in], y [..., out]. What it
returns goes on in the place of y; None changes nothing."""

Around = Callable[[str, Callable[[jax.Array], jax.Array], jax.Array], jax.Array]
"""`(name, call, x) -> y`, called in the place of every linear layer, layer norm and
table lookup while a forward pass is traced: the layer's path, such as
'encoder/layer_0/attention/query', the layer as it is, and its input (token ids, of a
table). It may call the layer never, once or several times; what it returns goes on. A
tap sees each call of a linear layer."""


class Stage(NamedTuple):
    """One piece of a model's forward pass, with the leaves it reads.

    Attributes:
      name: 'embed', 'layer_0', ..., 'head'.
      owns: regular expression; a leaf whose name matches in full is read here.
      apply: `(params, carry, batch, *, tap=None, around=None, dropout_key=None) ->
        carry`. `params` needs hold only the leaves that `owns` names; the first carry
        is None and the last stage returns the model's outputs.
      prefix: of all leaves that are read, where they are one subtree, such as
        'encoder/layer_0'.
      body: `(own, carry, batch, *, tap=None, around=None) -> carry`, the same on that
        subtree and without dropout; hooks are given names below `prefix`. Equal layers
        have one body, so that what is compiled for one serves all. None where there is
        none.
    """

    name: str
    owns: str
    apply: Callable[..., Any]
    prefix: str = ""
    body: Callable[..., Any] | None = None


class Model(NamedTuple):
    """A model as pure functions; it knows no mesh and holds no parameters.

    Attributes:
      init: `(key) -> Params`.
      apply: `(params, batch, *, tap=None, around=None, dropout_key=None) -> Outputs`;
        no dropout without a key.
      stages: the same computation as `apply`, one piece of the tree at a time.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Outputs]
    stages: tuple[Stage, ...]


def model_of(init: Callable[[Key], Params], stages: tuple[Stage, ...]) -> Model:
    """The model whose `apply` is the fold of its stages."""

    def apply(
        params: Params,
        batch: Batch,
        *,
        tap: Tap | None = None,
        around: Around | None = None,
        dropout_key: Key | None = None,
    ) -> Outputs:
        carry: Any = None
        for stage in stages:
            carry = stage.apply(
                params, carry, batch, tap=tap, around=around, dropout_key=dropout_key
            )
        return carry

    return Model(init, apply, stages)
