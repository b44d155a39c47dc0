"""Scores of many models of one problem: batches are made and compiled for once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fusion_jax.evaluation.readout import (
    Readout,
    collect,
    make_reader,
    read,
    readout,
)
from fusion_jax.evaluation.scoring import Scores, score
from fusion_jax.systems.problem import Problem
from fusion_jax.types import Batch, Outputs, Params


class Judge:
    """Scores models of one structure on the splits of a problem."""

    def __init__(self, problem: Problem, tokens_per_batch: int) -> None:
        """Prepares nothing yet; a split is batched when it is first asked for."""
        self.problem = problem
        self._tokens = tokens_per_batch
        self._batches: dict[str, list[tuple[np.ndarray, Batch]]] = {}

    def has(self, split: str) -> bool:
        """Whether the problem has the split."""
        return split in self.problem.encoded

    def scores(self, params: Params, split: str) -> Scores:
        """Scores of one model."""
        return self._scored(self.readout(params, split), split)

    def readout(self, params: Params, split: str) -> Readout:
        """What scoring needs of one model's outputs, in the order of the rows."""
        reader = _reader(self.problem.model.apply, self.problem.kind)
        batches = [batch for _, batch in self._placed(split)]
        return read(reader, params, batches, len(self.problem.encoded[split]))

    def scores_of(
        self, outputs: Callable[..., Outputs], given: Any, split: str
    ) -> Scores:
        """Scores of anything with outputs like the model's.

        Args:
          outputs: `(given, batch) -> outputs`, traced; what is compiled for it is kept.
          given: pytree of its arguments.
          split: which.
        """
        run = _program(outputs, self.problem.kind)
        pieces = [(index, run(given, batch)) for index, batch in self._placed(split)]
        return self._scored(collect(pieces, len(self.problem.encoded[split])), split)

    def _scored(self, readout: Any, split: str) -> Scores:
        return score(readout, self.problem.encoded[split], self.problem.metrics)

    def _placed(self, split: str) -> list[tuple[np.ndarray, Batch]]:
        if split not in self._batches:
            self._batches[split] = [
                (np.asarray(batch["index"]), jax.device_put(dict(batch)))
                for batch in self.problem.batches(split, self._tokens)
            ]
        return self._batches[split]


@functools.lru_cache(maxsize=64)
def _reader(apply: Callable[..., Any], kind: str) -> Callable[..., Any]:
    return make_reader(apply, kind)


@functools.lru_cache(maxsize=16)
def _program(outputs: Callable[..., Outputs], kind: str) -> Callable[..., Any]:
    return jax.jit(lambda given, batch: readout(kind, outputs(given, batch), batch))
