"""One tensor of all models, and how it is cut so that memory stays bounded."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.merging.form import Form

PIECE = 2**18
"""Elements of a piece: a few megabytes for all models, which caches still hold."""

_SMALL = 2**12  # the other padded length, for biases and norms
_RUN = 256  # elements of a sample that lie together, as memory is read


class Leaf(NamedTuple):
    """A tensor of all models, on disk or in memory.

    Attributes:
      name: in the output; random masks are derived from it.
      experts: K arrays of one shape, of any floating dtypes.
      base: likewise, where the method reads one.
      coefficients: [K] float64.
      options: numbers of the method.
      statistics: for a form by elements or rows, K arrays of the tensor's shape, or
        [K, ...], which are cut as the experts are; for one of whole leaves anything
        that it reads. None where the method needs none.
    """

    name: str
    experts: tuple[np.ndarray, ...]
    base: np.ndarray | None
    coefficients: np.ndarray
    options: Mapping[str, Any]
    statistics: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.experts[0].shape

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class Piece(NamedTuple):
    """A part of a leaf.

    Attributes:
      start: position of its first element in the flattened leaf.
      length: elements that are not padding.
      experts: [K, n] (element), [K, rows, in] (row), or [K, ...] of the leaf's shape.
      base: likewise.
      padded: whether n is greater than `length`.
      statistics: likewise, padded with zeros; those of a whole leaf as they are.
    """

    start: int
    length: int
    experts: np.ndarray
    base: np.ndarray | None
    padded: bool
    statistics: Any = None


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The one floating dtype, or where there are several, one that holds all."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return kinds.pop()
    # One by one: numpy knows no common dtype of bfloat16 and float16.
    return functools.reduce(np.promote_types, kinds, np.dtype(np.float32))


def cut(form: Form, leaf: Leaf) -> Iterator[Callable[[], Piece]]:
    """The pieces of a leaf, in order; each is read when it is called.

    A form by rows is cut only where the rows lie together, which is where the input
    axis is the last; else it is given the whole leaf.

    Raises:
      ValueError: statistics that would be cut do not have the shape of the experts.
    """
    leaf = _with_matching_statistics(form, leaf)
    if form.unit == "element":
        flat = leaf._replace(
            experts=tuple(x.reshape(-1) for x in leaf.experts),
            base=None if leaf.base is None else leaf.base.reshape(-1),
            statistics=None
            if leaf.statistics is None
            else tuple(x.reshape(-1) for x in leaf.statistics),
        )
        for start in range(0, leaf.size, PIECE):
            yield functools.partial(_run_of, form, flat, start)
        return
    by_rows = form.unit == "row" and form.input_axis == -1 and len(leaf.shape) > 1
    rows = int(np.shape(leaf.experts[0])[0]) if by_rows else 1
    step = _rows_of_a_piece(rows, leaf.size // rows) if by_rows else rows
    for row in range(0, rows, step):
        part = slice(row, min(row + step, rows)) if by_rows else ...
        yield functools.partial(_part_of, form, leaf, part, row * (leaf.size // rows))


def sampled(form: Form, leaf: Leaf, count: int) -> Iterator[Piece]:
    """About `count` elements taken evenly over the leaf; whole rows where they count.

    The positions of its pieces mean nothing: they serve to guess a threshold.
    """
    # Of few different lengths, as every length is a program of its own.
    count = max(_RUN, 2 ** math.ceil(math.log2(max(count, 1))))
    whole = form.unit == "leaf" and leaf.statistics is not None
    if leaf.size <= count or (form.unit != "element" and len(leaf.shape) < 2) or whole:
        yield from (piece() for piece in cut(form, leaf))
        return
    if form.unit == "element":
        starts = np.linspace(0, leaf.size - _RUN, count // _RUN).astype(np.int64)
        places = (starts[:, None] + np.arange(_RUN)).reshape(-1)
    else:
        number = max(1, min(leaf.shape[0], count * leaf.shape[0] // leaf.size))
        places = np.linspace(0, leaf.shape[0] - 1, number).astype(np.int64)

    def take(x: np.ndarray) -> np.ndarray:
        return (x.reshape(-1) if form.unit == "element" else x)[places]

    leaf = _with_matching_statistics(form, leaf)
    experts = _stacked([take(x) for x in leaf.experts])
    base = None if leaf.base is None else take(leaf.base)
    statistics = _statistics(form, leaf, take)
    yield Piece(0, experts[0].size, experts, base, False, statistics)


def _run_of(form: Form, flat: Leaf, start: int) -> Piece:
    stop = min(start + PIECE, flat.size)
    length = stop - start
    width = _SMALL if length <= _SMALL else PIECE
    base = None if flat.base is None else [flat.base[start:stop]]
    return Piece(
        start=start,
        length=length,
        experts=_stacked([x[start:stop] for x in flat.experts], width),
        base=None if base is None else _stacked(base, width)[0],
        padded=length < width,
        statistics=_statistics(form, flat, lambda x: x[start:stop], width),
    )


def _part_of(form: Form, leaf: Leaf, part: Any, start: int) -> Piece:
    experts = _stacked([x[part] for x in leaf.experts])
    base = None if leaf.base is None else leaf.base[part]
    statistics = _statistics(form, leaf, lambda x: x[part])
    return Piece(start, experts[0].size, experts, base, False, statistics)


def _with_matching_statistics(form: Form, leaf: Leaf) -> Leaf:
    """Statistics that are cut with the experts as K arrays: views, nothing is read."""
    if leaf.statistics is None or form.unit == "leaf":
        return leaf
    statistics = tuple(leaf.statistics)
    shapes = [np.shape(x) for x in statistics]
    if shapes != [leaf.shape] * len(leaf.experts):
        raise ValueError(
            f"statistics of '{leaf.name}': shapes {shapes}; give one of {leaf.shape} "
            f"for each of {len(leaf.experts)} experts"
        )
    return leaf._replace(statistics=statistics)


def _statistics(
    form: Form,
    leaf: Leaf,
    take: Callable[[np.ndarray], np.ndarray],
    width: int | None = None,
) -> Any:
    if leaf.statistics is None or form.unit == "leaf":
        return leaf.statistics
    return _stacked([take(x) for x in leaf.statistics], width)


def _stacked(parts: list[np.ndarray], width: int | None = None) -> np.ndarray:
    """[K, ...] of one dtype; of `width`, padded with zeros, where that is given.

    Stacked here and not in the program: XLA reads a row of an argument as it is, but a
    row of a concatenation only after writing all of it.
    """
    dtype = common_dtype([x.dtype for x in parts])
    if width is None or len(parts[0]) == width:
        return np.stack(parts, dtype=dtype)
    whole = np.zeros((len(parts), width), dtype)
    for row, part in zip(whole, parts, strict=True):
        row[: len(part)] = part
    return whole


def _rows_of_a_piece(rows: int, width: int) -> int:
    """Rows of a piece: equal pieces where the number of rows can be divided so."""
    most = max(1, min(rows, PIECE // max(width, 1)))
    even = next(n for n in range(most, 0, -1) if rows % n == 0)
    return even if 4 * even >= most else most
