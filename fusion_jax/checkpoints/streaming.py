"""Runs a form on tensors piece by piece: any size of model in bounded memory.

The second driver of `merging.form.Form`; the first is `merging.in_memory`. Sums are
taken in float64, and what comes out is rounded once.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.checkpoints.pieces import Leaf, Piece, cut, sampled
from fusion_jax.checkpoints.selection import select
from fusion_jax.checkpoints.threads import in_threads
from fusion_jax.merging.form import Block, Facts, Form, Rank, Select, Sum, Threshold
from fusion_jax.merging.masks import leaf_keys

_SAMPLE = 2**16  # elements of a leaf (of all leaves together) that guess a threshold


class Streamer:
    """Applies one form to leaves; its compiled pieces serve all leaves of a merge."""

    def __init__(self, form: Form, *, seed: int = 0, draws: bool = False) -> None:
        """Prepares a form.

        Args:
          form: of the method.
          seed: of random masks.
          draws: whether the method draws any.
        """
        self.form = form
        self._key = jax.random.key(seed) if draws else None
        self._programs: dict[Any, Callable[..., Any]] = {}

    def facts(self, leaves: Sequence[Leaf]) -> list[Facts]:
        """The facts of each leaf: of one leaf, or of all leaves of a model together.

        Args:
          leaves: one where the form's scope is a leaf; of a model in any order.
        """
        # One order of leaves, whatever order they come in, decides between equals.
        order = sorted(range(len(leaves)), key=lambda i: leaves[i].name)
        begins, total = {}, 0
        for i in order:
            begins[i] = total
            total += leaves[i].size
        together: dict[str, Any] = {}

        def local(i: int) -> Facts:
            return {
                name: Threshold(
                    fact.value,
                    np.clip(fact.last - begins[i], -1, leaves[i].size).astype(np.int32),
                )
                if isinstance(fact, Threshold)
                else fact
                for name, fact in together.items()
            }

        for step in self.form.passes:
            if isinstance(step, Rank):
                continue  # of each piece, when it comes
            if isinstance(step, Sum):
                parts = [
                    part
                    for i in order
                    for part in self._each(step.function, leaves[i], local(i))
                ]
                # In numpy: outside the float64 context jax would round the totals.
                together[step.name] = jax.tree.map(
                    lambda *x: np.sum([np.asarray(part) for part in x], axis=0), *parts
                )
            else:
                together[step.name] = self._select(
                    step, leaves, order, begins, total, together, local
                )
        return [local(i) for i in range(len(leaves))]

    def merged(
        self, leaf: Leaf, facts: Facts, dtype: np.dtype
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The merged leaf, piece by piece.

        Yields:
          (position of the first element, flat array of `dtype`).
        """

        def one(read: Callable[[], Piece]) -> tuple[int, np.ndarray]:
            piece = read()
            merged = self._run(self.form.apply, leaf, piece, facts, dtype)
            return piece.start, np.asarray(merged).reshape(-1)[: piece.length]

        yield from in_threads(one, cut(self.form, leaf))

    def _each(
        self, function: Callable[..., Any], leaf: Leaf, facts: Facts
    ) -> Iterator[Any]:
        yield from in_threads(
            lambda read: jax.tree.map(
                np.asarray, self._run(function, leaf, read(), facts)
            ),
            cut(self.form, leaf),
        )

    def _select(
        self,
        step: Select,
        leaves: Sequence[Leaf],
        order: list[int],
        begins: dict[int, int],
        total: int,
        together: Facts,
        local: Callable[[int], Facts],
    ) -> Threshold:
        def rows(i: int, piece: Piece) -> np.ndarray:
            values = self._run(step.values, leaves[i], piece, local(i))
            return np.asarray(values).reshape(len(values), -1)[:, : piece.length]

        def values_of(i: int, read: Callable[[], Piece]) -> tuple[int, np.ndarray]:
            piece = read()
            return begins[i] + piece.start, rows(i, piece)

        def pieces() -> Iterator[tuple[int, np.ndarray]]:
            for i in order:
                yield from in_threads(
                    functools.partial(values_of, i), cut(self.form, leaves[i])
                )

        options = leaves[0].options
        counts = np.asarray(step.counts(total, together, options), np.int64)
        samples = []
        for i in order:
            if not leaves[i].size:
                continue
            # Each leaf by its share of the model: small ones are read whole, and would
            # count too much.
            share = -(-_SAMPLE * leaves[i].size // total)
            parts = [rows(i, piece) for piece in sampled(self.form, leaves[i], share)]
            taken = np.concatenate(parts, axis=1)
            count = min(share, taken.shape[1])
            places = np.linspace(0, taken.shape[1] - 1, count).astype(np.int64)
            samples.append(taken[:, places])
        return select(pieces, np.concatenate(samples, axis=1), counts, total)

    def _run(
        self,
        function: Callable[..., Any],
        leaf: Leaf,
        piece: Piece,
        facts: Facts,
        dtype: np.dtype | None = None,
    ) -> Any:
        form = self.form
        for step in form.passes:
            # Before the function that reads them; one that is a rank's own reads none.
            if isinstance(step, Rank) and function is not step.values:
                values = self._run(step.values, leaf, piece, facts)
                facts = {**facts, step.name: _ranks(np.asarray(values), form)}
        # A method that asks for a tensor's name or exact shape is compiled for each.
        exact = form.unit != "element" or form.by_name
        static = (
            function,
            piece.padded,
            dtype,
            leaf.name if form.by_name else "",
            leaf.shape if exact else (-1,) * len(leaf.shape),
        )
        if static not in self._programs:
            self._programs[static] = jax.jit(functools.partial(_on_block, *static))
        with jax.enable_x64(True):
            keys = (
                None
                if self._key is None
                else leaf_keys(self._key, leaf.name, len(leaf.experts))
            )
            return self._programs[static](
                piece.experts,
                piece.base,
                leaf.coefficients,
                np.int32(piece.start),
                np.int32(piece.length),
                np.float64(leaf.size),
                keys,
                facts,
                dict(leaf.options),
                piece.statistics,
            )


def _ranks(values: np.ndarray, form: Form) -> np.ndarray:
    """`selection.ranks` of one piece, by sorts of packed integers.

    The bits of floats that are not negative sort as the floats do. With the position
    in the lower half, one sort orders both; a second one of (position, rank) undoes the
    order. Vector instructions sort such integers ten times faster than they argsort.
    """
    if values.ndim == 1:
        return np.zeros(values.shape, np.int32)
    axis = form.input_axis if values.ndim > 2 else -1
    rows = np.ascontiguousarray(np.moveaxis(values, axis, -1), np.float32)
    count = rows.shape[-1]
    places = np.arange(count, dtype=np.uint64)
    # Adding 0 makes -0 of it 0, whose bits are the smallest.
    packed = (rows + 0.0).view(np.uint32).astype(np.uint64)
    packed <<= 32
    packed |= places
    packed.sort(axis=-1)
    if count <= 2**16:  # half as wide, twice as fast
        order = packed.astype(np.uint32)
        order <<= 16
        order |= places.astype(np.uint32)
        order.sort(axis=-1)
        order &= 0xFFFF
    else:
        packed <<= 32
        packed |= places
        packed.sort(axis=-1)
        order = packed.astype(np.uint32)
    return np.moveaxis(order.view(np.int32), -1, axis)


def _on_block(
    function: Callable[..., Any],
    padded: bool,
    dtype: np.dtype | None,
    name: str,
    shape: tuple[int, ...],
    experts: jax.Array,
    base: jax.Array | None,
    coefficients: jax.Array,
    start: jax.Array,
    length: jax.Array,
    size: jax.Array,
    keys: jax.Array | None,
    facts: Facts,
    options: dict[str, Any],
    statistics: Any,
) -> Any:
    valid = None
    if padded:
        valid = jnp.arange(experts.shape[1], dtype=jnp.int32) < length
    block = Block(
        experts=experts.astype(jnp.float64),
        base=None if base is None else base.astype(jnp.float64),
        coefficients=coefficients,
        start=start,
        keys=keys,
        valid=valid,
        size=size,  # type: ignore[arg-type]
        shape=shape,
        name=name,
        statistics=statistics,
    )
    result = function(block, facts, options)
    return result if dtype is None else result.astype(dtype)
