"""Second moments of what linear layers read, summed while a forward pass is traced."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.types import Batch

_PANEL = 768
"""Rows of a panel: what lies left of its diagonal block is the mirror image of others
and not computed. Panels of half the height are a fifth slower on a CPU."""

Panels = tuple[jax.Array, ...]
"""A symmetric [d, d] without what is below its diagonal blocks: the p-th panel is rows
from 768 p on, at most 768 of them, and columns from 768 p on."""


class Grams(NamedTuple):
    """Second moments of the inputs of one model's linear layers.

    Attributes:
      inputs: input -> [in + 1, in + 1] float32, the mean over tokens of
        [x; 1] [x; 1]^T. Its last entry is 1, or 0 where no token was seen.
      counts: input -> tokens that the mean is over.
      readers: kernel leaf -> the input that it reads. Layers of one input share it.
      outputs: kernel leaf -> [out, out] float32, the mean over the same tokens of
        g g^T, g the gradient of the log-likelihood at the layer's output; empty where
        it was not asked for.
      examples: rows that were seen.
    """

    inputs: dict[str, jax.Array]
    counts: dict[str, float]
    readers: dict[str, str]
    outputs: dict[str, jax.Array]
    examples: int


class Moment(NamedTuple):
    """Sums over the tokens of one input: [x; 1] [x; 1]^T without what is said twice.

    Attributes:
      gram: sum_n x_n x_n^T, panels of an [in, in] float32.
      total: sum_n x_n, [in] float32.
      count: tokens, int32: in float32 a count stops at 2^24.
    """

    gram: Panels
    total: jax.Array
    count: jax.Array


class InputMoments:
    """A tap that sums [x; 1] [x; 1]^T over the real tokens of a batch.

    Made anew for each trace; afterwards `sums` and `readers` hold tracers and names.

    Attributes:
      sums: input -> its sums. An input is named after the first layer that reads it,
        without '/kernel'.
      readers: kernel leaf -> input.
    """

    def __init__(self, batch: Batch, layers: str = ".*") -> None:
        """Prepares for one forward pass.

        Args:
          batch: what the model is applied to: 'attention_mask' [B, T] and, where rows
            are padding, 'mask' [B].
          layers: regular expression; kernel leaves that match in full are recorded.
        """
        self._batch = batch
        self._layers = re.compile(layers)
        self._seen: list[tuple[jax.Array, str]] = []
        self.sums: dict[str, Moment] = {}
        self.readers: dict[str, str] = {}

    def __call__(self, name: str, x: jax.Array, y: jax.Array) -> None:
        """Records one layer; layers that read the same array share one sum.

        Raises:
          ValueError: the layer runs twice in one pass: its input is not one array.
        """
        del y
        if not self._layers.fullmatch(name):
            return
        if name in self.readers:
            raise ValueError(
                f"{name}: runs twice in one forward pass, so that it has no Gram of "
                "its own; leave it out with layers="
            )
        for known, owner in self._seen:
            if known is x:
                self.readers[name] = owner
                return
        owner = name.removesuffix("/kernel")
        self._seen.append((x, owner))
        self.readers[name] = owner
        weights = token_weights(x.shape, self._batch)
        self.sums[owner] = second_moment(x, weights)


def token_weights(shape: tuple[int, ...], batch: Batch) -> jax.Array:
    """1 for real tokens and 0 for padding, of a layer's input.

    Args:
      shape: [B, T, in]; or [B, 1, in] or [B, in], which only the row's mask concerns.
      batch: with 'attention_mask' [B, T] and perhaps 'mask' [B].

    Returns:
      [B * T] or [B] float32.
    """
    tokens = jnp.asarray(batch["attention_mask"], jnp.float32)
    rows = jnp.asarray(batch.get("mask", jnp.ones(len(tokens))), jnp.float32)
    if len(shape) == 3 and shape[1] == tokens.shape[1]:
        return (tokens * rows[:, None]).reshape(-1)
    return rows


def second_moment(x: jax.Array, weights: jax.Array) -> Moment:
    """The sums over the rows of x [..., in] whose weight is not 0."""
    x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    # Not a product: padding may hold anything, infinity included.
    x = jnp.where(weights[:, None] > 0, x, 0)
    count = jnp.sum(weights > 0, dtype=jnp.int32)
    return Moment(symmetric_product(x), jnp.sum(x, axis=0), count)


def symmetric_product(x: jax.Array) -> Panels:
    """x^T x in float32, [n, d]."""
    return tuple(
        jnp.matmul(x[:, start : start + _PANEL].T, x[:, start:], precision="highest")
        for start in range(0, x.shape[1], _PANEL)
    )


def mirrored(panels: Panels) -> np.ndarray:
    """The whole symmetric matrix, [d, d], on the host."""
    width = panels[0].shape[1]
    return _fill(np.empty((width, width), np.float32), panels)


def mean_moment(moment: Moment) -> np.ndarray:
    """1/N sum_n [x_n; 1] [x_n; 1]^T, [in + 1, in + 1] float32, on the host.

    N is the count, which is not 0.
    """
    tokens = np.float32(moment.count)
    width = len(moment.total)
    whole = np.empty((width + 1, width + 1), np.float32)
    _fill(whole[:-1, :-1], moment.gram)
    whole[:-1, :-1] /= tokens
    whole[-1, :-1] = whole[:-1, -1] = np.asarray(moment.total) / tokens
    whole[-1, -1] = 1
    return whole


def _fill(matrix: np.ndarray, panels: Panels) -> np.ndarray:
    start = 0
    for panel in panels:
        end = start + len(panel)
        matrix[start:end, start:] = np.asarray(panel)
        matrix[end:, start:end] = matrix[start:end, end:].T
        start = end
    return matrix
