"""A map between the widths of two hosts, and what it does to a leaf."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Map(NamedTuple):
    """How a space of the origin's host lies in that of the receiver's.

    Attributes:
      index: [d_t] the origin's dimension that each of the receiver's stands for, -1 for
        none; None for a dense map.
      read: [d_t, d_s] float64, x_s ~ x_t read; None with an index.
      write: [d_s, d_t] float64, y_t ~ y_s write; None with an index.
    """

    index: np.ndarray | None
    read: np.ndarray | None = None
    write: np.ndarray | None = None

    @property
    def is_identity(self) -> bool:
        """Whether every dimension stays where it is."""
        return self.index is not None and bool(
            np.array_equal(self.index, np.arange(len(self.index)))
        )


Maps = Callable[[str, str, str], Map]
"""`(path in the receiver, path in the origin, 'in' or 'out') -> Map`."""


class NoMeaning(ValueError):
    """The method says nothing about a leaf of this kind."""


def identity(size: int) -> Map:
    """The map that leaves every dimension where it is."""
    return Map(np.arange(size))


def moved(leaf: np.ndarray, axis: int, found: Map, *, reads: bool) -> np.ndarray:
    """A leaf with one axis brought from the origin's width to the receiver's.

    Reading: sum_s read[t, s] leaf[s]; writing: sum_s leaf[s] write[s, t]. An index
    picks, and leaves zeros where the receiver has dimensions that nothing stands for.

    Args:
      leaf: any shape.
      axis: the axis, of d_s entries.
      found: the map of its space.
      reads: whether the module reads activations along the axis.

    Returns:
      The leaf with d_t entries there; its own dtype and entries with an index, float64
      with a dense map.
    """
    leaf = np.asarray(leaf)
    if found.index is not None:
        picked = np.take(leaf, np.maximum(found.index, 0), axis=axis)
        absent = found.index < 0
        if absent.any():
            places = [slice(None)] * leaf.ndim
            places[axis] = absent  # type: ignore[call-overload]
            picked = picked.copy()
            picked[tuple(places)] = 0
        return picked
    assert found.read is not None and found.write is not None
    matrix = found.read.T if reads else found.write
    product = np.tensordot(np.asarray(leaf, np.float64), matrix, axes=(axis, 0))
    return np.moveaxis(product, -1, axis)


def factors_moved(leaf: np.ndarray, found: Map, fill: float, name: str) -> np.ndarray:
    """One factor a dimension, brought to the receiver's width.

    Args:
      leaf: [d_s].
      found: the map of its space.
      fill: what stands where the receiver has dimensions that nothing stands for.
      name: of the leaf, for the error.

    Raises:
      NoMeaning: the map mixes dimensions.
    """
    if found.index is None:
        raise NoMeaning(
            f"{name}: one factor a dimension, and the map mixes dimensions; choose "
            "method 'correlation'"
        )
    leaf = np.asarray(leaf)
    return np.where(
        found.index < 0, fill, np.take(leaf, np.maximum(found.index, 0))
    ).astype(leaf.dtype)
