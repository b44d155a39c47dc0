"""Second moments of what linear layers read, summed while a forward pass is traced."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.types import Batch

_WIDE = 512  # columns; wider products are split, and their mirror image is not computed


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


class InputMoments:
    """A tap that sums [x; 1] [x; 1]^T over the real tokens of a batch.

    Made anew for each trace; afterwards `sums` and `readers` hold tracers and names.

    Attributes:
      sums: input -> [in + 1, in + 1] float32. An input is named after the first layer
        that reads it, without '/kernel'.
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
        self.sums: dict[str, jax.Array] = {}
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


def second_moment(x: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_n w_n [x_n; 1] [x_n; 1]^T, w_n in {0, 1}: [..., in] -> [in + 1, in + 1]."""
    x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    # Not a product: padding may hold anything, infinity included.
    x = jnp.where(weights[:, None] > 0, x, 0)
    total = jnp.sum(x, axis=0)
    bottom = jnp.append(total, jnp.sum(weights))
    gram = symmetric_product(x)
    return jnp.concatenate(
        [jnp.concatenate([gram, total[:, None]], axis=1), bottom[None]], axis=0
    )


def symmetric_product(x: jax.Array) -> jax.Array:
    """x^T x in float32, [n, d] -> [d, d]; what is equal by symmetry is copied."""
    width = x.shape[1]
    if width <= _WIDE:
        return jnp.matmul(x.T, x, precision="highest")
    left, right = x[:, : width // 2], x[:, width // 2 :]
    corner = jnp.matmul(left.T, right, precision="highest")
    return jnp.block(
        [
            [symmetric_product(left), corner],
            [corner.T, symmetric_product(right)],
        ]
    )
