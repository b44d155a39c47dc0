"""Controls of a portability study: modules that know nothing, of the same numbers."""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.types import Key, Params

Control = Callable[[Params, Key], Params]
"""`(leaves of a ported module, key) -> leaves of the same shapes and dtypes`."""


def gaussian(leaves: Params, key: Key) -> Params:
    """Each tensor drawn from N(m, s^2) with its own mean m and deviation s.

    Args:
      leaves: tree of [...].
      key: of the draw; each leaf has a stream of its own by its name.

    Returns:
      Tree of the same shapes and dtypes; a leaf of equal entries comes back as it is.
      Moments are taken in float64, of all entries (s with 1/n).
    """

    def draw(name: str, leaf: jax.Array) -> jax.Array:
        values = np.asarray(leaf, np.float64)
        noise = jax.random.normal(_stream(key, name), values.shape)
        return jnp.asarray(values.mean() + values.std() * noise, leaf.dtype)

    return trees.map_with_names(draw, leaves)


def permuted(leaves: Params, key: Key) -> Params:
    """Each tensor with its own entries in another order.

    Args:
      leaves: tree of [...].
      key: as in `gaussian`.

    Returns:
      Tree of the same shapes and dtypes; every moment of a tensor is kept.
    """

    def draw(name: str, leaf: jax.Array) -> jax.Array:
        entries = jax.random.permutation(_stream(key, name), leaf.reshape(-1))
        return entries.reshape(leaf.shape)

    return trees.map_with_names(draw, leaves)


def gaussian_module(leaves: Params, key: Key) -> Params:
    """All tensors drawn from one Gaussian, with mean and deviation of all entries.

    Args:
      leaves: tree of [...].
      key: as in `gaussian`.

    Returns:
      Tree of the same shapes and dtypes.
    """
    entries = np.concatenate(
        [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(leaves)]
    )
    mean, deviation = entries.mean(), entries.std()

    def draw(name: str, leaf: jax.Array) -> jax.Array:
        noise = jax.random.normal(_stream(key, name), leaf.shape)
        return jnp.asarray(mean + deviation * noise, leaf.dtype)

    return trees.map_with_names(draw, leaves)


CONTROLS: dict[str, Control] = {
    "gaussian": gaussian,
    "permuted": permuted,
    "gaussian_module": gaussian_module,
}
"""name -> control made from the ported module; 'scratch' is the technique's own init.

Reference: Sabry and Belz 2024, arXiv 2401.14228, sample "from the same distribution as
the ported module" without saying which; these are three readings of it.
"""


def _stream(key: Key, name: str) -> Key:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
