"""A task made ready for an encoder: model, token ids, batches, and how to score."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.checkpoints.huggingface import Checkpoint, attach_encoder
from fusion_jax.data import Task
from fusion_jax.data.batches import TrainBatches, bucket_lengths, eval_batches
from fusion_jax.data.encoded import Encoded
from fusion_jax.data.tokenise import encode
from fusion_jax.evaluation.metrics import DEFAULT_METRICS
from fusion_jax.evaluation.readout import readout
from fusion_jax.models import build_model
from fusion_jax.peft import KINDS, PeftConfig, attach, init_module, with_module
from fusion_jax.search.ways import Readout
from fusion_jax.training.config import FitConfig
from fusion_jax.types import Batch, Key, Model, Params


class Beside(NamedTuple):
    """The module that is trained in the place of the encoder.

    Attributes:
      config: of the module.
      host: the model without it.
      key: draws the module; one key gives one start.
    """

    config: PeftConfig
    host: Model
    key: Key


@dataclass(frozen=True)
class Problem:
    """One task for one encoder.

    Attributes:
      task: rows and labels.
      model: the encoder with the task's head, and with a module if one is trained.
      encoded: split -> token ids.
      max_length: tokens of an input.
      width: columns of the model's head, if more than the task has labels.
      beside: the module, if one is trained.
    """

    task: Task
    model: Model
    encoded: Mapping[str, Encoded] = field(repr=False)
    max_length: int
    width: int | None = None
    beside: Beside | None = None

    @property
    def kind(self) -> str:
        """Kind of the task."""
        return self.task.kind

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics whose mean is the task's score."""
        return self.task.metrics or tuple(DEFAULT_METRICS[self.task.kind])

    @property
    def readout(self) -> Readout:
        """`(outputs, batch) -> readout` of the task's kind."""
        return functools.partial(readout, self.task.kind)

    def batches(self, split: str, tokens_per_batch: int) -> list[Batch]:
        """Every row of a split once, in few shapes."""
        return self.batches_of(self.encoded[split], tokens_per_batch)

    def batches_of(self, encoded: Encoded, tokens_per_batch: int) -> list[Batch]:
        """As `batches`, of rows taken from a split."""
        return eval_batches(
            encoded,
            tokens_per_batch=tokens_per_batch,
            buckets=bucket_lengths(self.max_length),
            num_labels=self.width,
        )

    def train_batches(self, config: FitConfig) -> TrainBatches:
        """The training rows as a fit with this config takes them."""
        return TrainBatches(
            self.encoded["train"],
            config.batch_size,
            seed=config.seed,
            buckets=config.buckets or bucket_lengths(self.max_length),
            num_labels=self.width,
        )


def make_problem(
    task: Task,
    encoder: Checkpoint,
    tokenizer: Any,
    *,
    max_length: int,
    dtype: str = "float32",
    splits: Sequence[str] = ("train", "dev", "test"),
) -> Problem:
    """Tokenises a task and builds its model.

    Args:
      task: with at least the splits that will be asked for.
      encoder: the pretrained encoder.
      tokenizer: of `data.tokenise.load_tokenizer`.
      max_length: tokens of an input, at most what the encoder has positions for.
      dtype: of the computation.
      splits: those to tokenise, where the task has them.
    """
    model = build_model(
        encoder.config, task.kind, max(task.num_labels, 1), dtype=jnp.dtype(dtype)
    )
    encoded = {
        split: encode(task, split, tokenizer, max_length)
        for split in splits
        if split in task.splits
    }
    return Problem(task, model, encoded, max_length)


def widened(problem: Problem, encoder: Checkpoint, width: int, dtype: str) -> Problem:
    """The problem with a head of more columns: one model for tasks of one kind.

    Args:
      problem: with its own head.
      encoder: that its model is of.
      width: columns; those past the task's own labels mean nothing.
      dtype: of the computation.
    """
    width = max(width, 1)
    model = build_model(encoder.config, problem.kind, width, dtype=jnp.dtype(dtype))
    return replace(problem, model=model, width=width)


def with_modules(problem: Problem, config: PeftConfig, key: Key) -> Problem:
    """The problem whose fits train a module beside the frozen encoder.

    Args:
      problem: without a module.
      config: of the module, whose leaves all lie in the encoder's layers.
      key: draws it.
    """
    beside = Beside(config, problem.model, key)
    return replace(problem, model=attach(problem.model, config), beside=beside)


def starting_params(
    problem: Problem, encoder: Params, base: Params, key: Key
) -> Params:
    """An encoder with a fresh head for a problem, and with its module if it has one.

    Args:
      problem: what is to be trained.
      encoder: {'encoder': ...} to start from, perhaps of a task of another kind; a
        module in it goes on.
      base: the pretrained {'encoder': ...}; gives what `encoder` lacks (the pooler).
      key: draws the head; one key gives one head.
    """
    whole = {"encoder": _fill(encoder["encoder"], base["encoder"])}
    if problem.beside is None:
        return attach_encoder(problem.model, whole, key)
    config, host, module_key = problem.beside
    start = attach_encoder(host, whole, key)
    own, _ = trees.partition(whole, KINDS[config.kind].owns)
    if not own:
        own = init_module(config, start, module_key).params
    return with_module(start, own)


def _fill(tree: Params, base: Params) -> Params:
    return {**base, **tree}


def same_head(params: Params, head_of: Params) -> Params:
    """`params` with the head of another tree, bit for bit."""
    return {**params, "head": jax.tree.map(lambda x: x, head_of["head"])}
