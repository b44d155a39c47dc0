"""The owners of a dataless fusion: each with its model and the statistics it gives."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.config import Config
from fusion_jax.data.batches import bucket_lengths, eval_batches
from fusion_jax.data.task import target_labels
from fusion_jax.merging.layer_inputs import Grams
from fusion_jax.models import build_model
from fusion_jax.models.config import EncoderConfig
from fusion_jax.systems.problem import Problem
from fusion_jax.training.fisher import collect_fisher
from fusion_jax.training.statistics import collect_grams
from fusion_jax.types import Batch, Model, Params


@dataclass
class Member:
    """One owner: private rows, a model fine-tuned on them, and statistics of both.

    Statistics are collected when they are first read: Grams from training rows, those
    of gradients from the rows of `statistics.fisher_split`.

    Attributes:
      problem: its task.
      params: its model.
      architecture: of the encoder.
      options: of the run: 'statistics', 'seed', 'dtype', 'tokens_per_batch'.
    """

    problem: Problem
    params: Params = field(repr=False)
    architecture: EncoderConfig
    options: Config

    @property
    def name(self) -> str:
        """Of its task."""
        return self.problem.task.name

    @property
    def owned(self) -> np.ndarray:
        """[C] bool: labels that its training rows have."""
        task = self.problem.task
        owned = np.zeros(max(task.num_labels, 1), bool)
        for row in task.rows("train"):
            owned[list(target_labels(task.kind, row["target"]))] = True
        return owned

    @functools.cached_property
    def grams(self) -> Grams:
        """Second moments of the inputs of its linear layers."""
        return collect_grams(
            self._model, self.params, self.batches(self.options.statistics.examples)
        )

    @functools.cached_property
    def curvature(self) -> Grams:
        """`grams` with second moments of the gradients at the layers' outputs."""
        return collect_grams(
            self._model,
            self.params,
            self._rows_of_gradients(),
            outputs=True,
            kind=self.problem.kind,
            layers=r"encoder/.*",
        )

    @functools.cached_property
    def fisher(self) -> Params:
        """Diagonal Fisher information."""
        return collect_fisher(
            self.problem.model,
            self.params,
            self._rows_of_gradients(),
            kind=self.problem.kind,
            estimator=self.options.statistics.estimator,
            key=jax.random.key(self.options.seed),
        )[0]

    def batches(self, examples: int, split: str = "train") -> list[Batch]:
        """A seeded draw of the split's rows; 0 = all."""
        encoded = self.problem.encoded[split]
        rows = np.asarray(encoded.trainable)
        if examples and examples < len(rows):
            generator = np.random.Generator(np.random.PCG64(self.options.seed))
            rows = np.sort(generator.choice(rows, examples, replace=False))
        return eval_batches(
            encoded.take(rows),
            tokens_per_batch=self.options.tokens_per_batch,
            buckets=bucket_lengths(self.problem.max_length),
        )

    def _rows_of_gradients(self) -> list[Batch]:
        statistics = self.options.statistics
        return self.batches(statistics.fisher_examples, statistics.fisher_split)

    @property
    def _model(self) -> Model:
        return statistics_model(self.problem, self.architecture, self.options.dtype)


def statistics_model(
    problem: Problem, architecture: EncoderConfig, dtype: str
) -> Model:
    """The problem's model, which computes every token in its last layer too."""
    return build_model(
        architecture,
        problem.kind,
        max(problem.task.num_labels, 1),
        dtype=jnp.dtype(dtype),
        every_token=True,
    )


def owners_of(members: Sequence[Member]) -> np.ndarray:
    """[K, C] bool: which labels each member's rows have."""
    return np.stack([member.owned for member in members])


def rows_of(members: Sequence[Member]) -> dict[str, Mapping[str, Any]]:
    """Rows of each split, by member."""
    return {
        member.name: {s: len(rows) for s, rows in member.problem.task.splits.items()}
        for member in members
    }
