"""Embedding rows of several models brought to the order of one vocabulary."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.checkpoints.vocabulary.options import TokenRow

_ZERO, _MEAN = -1, -2  # sources that are no model
_CHUNK_BYTES = 2**24  # of float64 rows that are in memory beside the result


class _Recipe(NamedTuple):
    """Where each output row of one model comes from.

    Attributes:
      source: [tokens] index of a model, _ZERO or _MEAN.
      row: [tokens] in that model's tensor.
    """

    source: np.ndarray
    row: np.ndarray


@dataclass(frozen=True, eq=False)
class Alignment:
    """An output vocabulary and how the rows of every model become its rows.

    For model k and output token t, with V_k the rows of k's tensor and R the models
    whose tensor has a row of t:

        out_k[t] = E_k[id_k(t)]                  if k is in R and t is not forced
                   E_m[r] or 0                   else, as `tokens` configures it
                   E_m[id_m(t)]                  else, if R = {m}
                   E_base[id_base(t)]            else, if base is in R
                   mean over m in R of E_m[id_m(t)]    else
                   0                             if R is empty
        out_k[p] = mean over tokens t of out_k[t]      for padding rows p

    Attributes:
      ids: output token -> id, in the order of ids.
      num_rows: of the output's tensors, padding included. An id below it that has no
        token (a gap of the donor's ids) is a padding row.
      labels: of the models, K.
      donor: label of the model whose ids the output keeps and whose tokenizer files
        `write_tokenizer` extends.
      base: label of the base, or None.
      own: [K, n] id of each output token in each model, -1 where it has none.
      fixed: output id -> the row that the options configure, None for zeros.
      forced: output ids whose configured row also goes to models that have the token.
      notes: lines for the person.
    """

    ids: Mapping[str, int]
    num_rows: int
    labels: tuple[str, ...]
    donor: str
    base: str | None
    own: np.ndarray
    fixed: Mapping[int, TokenRow | None]
    forced: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Output tokens in the order of their ids."""
        return tuple(self.ids)

    def apply(
        self,
        tensors: Mapping[str, np.ndarray],
        wanted: tuple[str, ...] | None = None,
    ) -> dict[str, np.ndarray]:
        """Rows of every model's tensor in the order of the output vocabulary.

        Args:
          tensors: label -> [V_k, ...], views are fine; of the models that take part.
            V_k may be more than the model's tokens. A token whose id is V_k or more
            counts as absent from k.
          wanted: labels to return; None returns all that are given.

        Returns:
          label -> [num_rows, ...], each in its own dtype. Means are taken in float64.
          Extra memory is a few chunks of rows.

        Raises:
          CheckpointError: labels that are unknown, shapes that differ beyond the first
            axis, or configured rows that no given tensor has.
        """
        return {
            label: self.rows(label, tensors)
            for label in (tensors if wanted is None else wanted)
        }

    def rows(
        self,
        label: str,
        tensors: Mapping[str, np.ndarray],
        start: int = 0,
        stop: int | None = None,
    ) -> np.ndarray:
        """Output rows start to stop of one model: a piece of what `apply` returns.

        A piece with padding rows costs a pass over the model's tensor for their mean.

        Args:
          label: whose rows.
          tensors: as in `apply`.
          start: first row.
          stop: row after the last; None is `num_rows`.

        Returns:
          [stop - start, ...] in the dtype of the model's tensor.

        Raises:
          CheckpointError: as `apply`.
        """
        self._check(label, tensors)
        stop = self.num_rows if stop is None else min(stop, self.num_rows)
        like = tensors[label]
        recipe = self._recipe(label, tensors)
        named = self._named()
        out = np.zeros((max(stop - start, 0), *like.shape[1:]), like.dtype)
        for begin, end in _chunks(like, start, min(stop, self._height)):
            self._fill(out[begin - start : end - start], recipe, tensors, begin)
        empty = ~named[start:stop]
        if empty.any():
            whole = start == 0 and stop == self.num_rows
            total = np.zeros(like.shape[1:])
            for begin, end in _chunks(like, 0, self._height):
                part = (
                    out[begin:end] if whole else self.rows(label, tensors, begin, end)
                )
                here = named[begin:end]
                part = part if here.all() else part[here]
                total += part.astype(np.float64).sum(0)
            out[empty] = (total / named.sum()).astype(like.dtype)
        return out

    @property
    def _height(self) -> int:
        """Rows up to the last token."""
        return self.own.shape[1]

    def _named(self) -> np.ndarray:
        """[num_rows], False at padding rows."""
        named = np.zeros(self.num_rows, bool)
        named[np.fromiter(self.ids.values(), np.int64, len(self.ids))] = True
        return named

    def _valid(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """[K, n], whether the model's tensor is given and has a row of the token."""
        heights = [len(tensors[m]) if m in tensors else 0 for m in self.labels]
        return (self.own >= 0) & (self.own < np.array(heights)[:, None])

    def _recipe(self, label: str, tensors: Mapping[str, np.ndarray]) -> _Recipe:
        valid = self._valid(tensors)
        count = valid.sum(0)
        first = valid.argmax(0)
        source = np.where(count == 0, _ZERO, np.where(count == 1, first, _MEAN))
        row = np.take_along_axis(self.own, first[None], 0)[0]
        if self.base is not None:
            base = self.labels.index(self.base)
            source[valid[base]] = base
            row[valid[base]] = self.own[base, valid[base]]
        for position, given in self.fixed.items():
            source[position] = (
                _ZERO if given is None else self.labels.index(given.model)
            )
            row[position] = 0 if given is None else given.row
        k = self.labels.index(label)
        mine = valid[k].copy()
        mine[list(self.forced)] = False
        source[mine] = k
        row[mine] = self.own[k, mine]
        return _Recipe(source, row)

    def _fill(
        self,
        out: np.ndarray,
        recipe: _Recipe,
        tensors: Mapping[str, np.ndarray],
        start: int,
    ) -> None:
        source = recipe.source[start : start + len(out)]
        row = recipe.row[start : start + len(out)]
        for i in np.unique(source):
            at = np.flatnonzero(source == i)
            if i >= 0 and len(at) == len(out) and (np.diff(row) == 1).all():
                # Most chunks of a donor's own rows: one copy, no gather.
                out[:] = tensors[self.labels[i]][row[0] : row[0] + len(out)]
            elif i >= 0:
                out[at] = tensors[self.labels[i]][row[at]]
            elif i == _MEAN:
                out[at] = self._means(tensors, start + at)

    def _means(
        self, tensors: Mapping[str, np.ndarray], positions: np.ndarray
    ) -> np.ndarray:
        valid = self._valid(tensors)[:, positions]
        rest = next(iter(tensors.values())).shape[1:]
        total = np.zeros((len(positions), *rest))
        for k, label in enumerate(self.labels):
            if valid[k].any():
                rows = tensors[label][self.own[k, positions[valid[k]]]]
                total[valid[k]] += rows.astype(np.float64)
        return total / valid.sum(0).reshape(-1, *[1] * len(rest))

    def _check(self, label: str, tensors: Mapping[str, np.ndarray]) -> None:
        faults = [
            f"{name} is no model of this alignment ({', '.join(self.labels)})"
            for name in tensors
            if name not in self.labels
        ]
        if label not in tensors:
            faults.append(f"{label}: its tensor is not given")
        shapes = {name: array.shape for name, array in tensors.items()}
        if len({shape[1:] for shape in shapes.values()}) > 1:
            said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            faults.append(f"rows of different shapes cannot be aligned: {said}")
        tokens = {i: token for token, i in self.ids.items()} if self.fixed else {}
        for position, given in self.fixed.items():
            if given is None:
                continue
            height = len(tensors[given.model]) if given.model in tensors else 0
            if given.row >= height:
                faults.append(
                    f"token {tokens[position]!r} takes row {given.row} of "
                    f"{given.model}, whose tensor has {height} rows here"
                )
        if faults:
            raise CheckpointError("\n".join(faults))


def _chunks(like: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    width = int(np.prod(like.shape[1:], dtype=np.int64))
    step = max(1, _CHUNK_BYTES // (8 * max(width, 1)))
    for begin in range(start, stop, step):
        yield begin, min(begin + step, stop)
