"""The form of a merge: passes that gather facts, then one map over pieces of a leaf.

A method is written once, as a `Form`. `in_memory.run` gives it whole leaves, under
jit, vmap and grad; the streaming of files gives it piece after piece, in bounded
memory. Both compute the same numbers, because a piece never sees more than its own
elements and the facts.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Facts = Mapping[str, Any]
"""Results of the passes by name: what `Sum` summed, a `Threshold` for a `Select`, the
ranks of a `Rank`."""

Options = Mapping[str, Any]
"""Numbers of a method by name, such as density or scale; they may be traced."""


class Block(NamedTuple):
    """A piece of one leaf, of all models.

    Attributes:
      experts: [K, ...] in float32, or float64 where files are streamed.
      base: [...] likewise; None where the method needs none.
      coefficients: [K].
      start: position of the first element in the flattened leaf; an int or a traced
        int32, 0 for a whole leaf.
      keys: [K] random keys, of this leaf and each expert; None where the method needs
        none.
      valid: [...] False for padding at the end of a leaf; None where there is none.
        Padding is 0 in experts and base.
      size: elements of the whole leaf; a traced number in a flat piece.
      shape: of the whole leaf, without K. In a flat piece only the number of axes is
        meant, unless the form says `by_name`.
      name: of the leaf; empty in a flat piece, unless the form says `by_name`.
      statistics: of this leaf, [K, ...] each; None where the method needs none.
    """

    experts: jax.Array
    base: jax.Array | None
    coefficients: jax.Array
    start: int | jax.Array
    keys: jax.Array | None
    valid: jax.Array | None
    size: int
    shape: tuple[int, ...]
    name: str
    statistics: Any = None

    @property
    def deltas(self) -> jax.Array:
        """theta_k - theta_0, [K, ...]; the experts themselves without a base."""
        return self.experts if self.base is None else self.experts - self.base


class Threshold(NamedTuple):
    """The line between kept and dropped entries of R rows.

    An entry x at position i of a row is kept where x > value, or x = value and
    i <= last: exactly as many as were asked for, ties in the order of positions.

    Attributes:
      value: [R].
      last: [R] int32, position in the leaf.
    """

    value: jax.Array
    last: jax.Array


class Sum(NamedTuple):
    """A pass that adds up over the pieces of a leaf (or of the model).

    Attributes:
      name: of the fact.
      function: `(block, facts, options) -> tree of arrays`, zero for padding.
    """

    name: str
    function: Callable[[Block, Facts, Options], Any]


class Select(NamedTuple):
    """A pass that finds the k-th largest of R rows of values.

    Attributes:
      name: of the fact, a `Threshold`.
      values: `(block, facts, options) -> [R, ...]` float32, not negative.
      counts: `(size, facts, options) -> [R]` how many to keep of `size` entries a row;
        see `selection.count`.
    """

    name: str
    values: Callable[[Block, Facts, Options], jax.Array]
    counts: Callable[[int, Facts, Options], jax.Array]


class Rank(NamedTuple):
    """A step that ranks the values of each row, smallest first.

    The fact is [K, ...] int32 from 0: of the piece at hand, as a row is always whole in
    one piece. Equal values rank by position. Leaves without an input axis are a row.

    Attributes:
      name: of the fact.
      values: `(block, facts, options) -> [K, ...]` float32, not negative.
    """

    name: str
    values: Callable[[Block, Facts, Options], jax.Array]


class Form(NamedTuple):
    """A merge as passes and a map.

    Attributes:
      apply: `(block, facts, options) -> [...]`, the merged piece.
      passes: run in this order; each sees the facts of those before.
      scope: 'leaf' (facts of every leaf by itself) or 'model' (of all together).
      unit: the smallest piece that `apply` and the passes can be given: 'element'
        (flat, any number of them), 'row' (whole rows of the input axis), or 'leaf'.
      input_axis: -2 in Flax kernels [in, out], -1 in PyTorch's; for units 'row' and
        'leaf'.
      by_name: whether `apply` or a pass reads the block's name, or more of its shape
        than the number of axes, though the unit is an element.
    """

    apply: Callable[[Block, Facts, Options], jax.Array]
    passes: tuple[Sum | Select | Rank, ...] = ()
    scope: str = "leaf"
    unit: str = "element"
    input_axis: int = -2
    by_name: bool = False
