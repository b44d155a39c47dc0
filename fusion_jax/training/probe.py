"""A head on a frozen encoder: the encoder runs once, the head learns from that."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.data.batches import LENGTHS, TrainBatches, eval_batches
from fusion_jax.data.encoded import Encoded
from fusion_jax.training.config import FitConfig
from fusion_jax.training.evaluate import TOKENS_PER_BATCH
from fusion_jax.training.fit import FitResult, fit
from fusion_jax.types import Batch, Key, Model, Outputs, Params, Tap


def fit_head(
    model: Model,
    params: Params,
    train: Encoded,
    dev: Encoded | None,
    config: FitConfig,
    *,
    kind: str,
    metrics: Sequence[str] | None = None,
    num_labels: int | None = None,
    workdir: str | Path | None = None,
    name: str = "probe",
    progress: bool = True,
) -> FitResult:
    """Trains 'head/.*' and nothing else, as `fit` with head epochs alone does.

    Without dropout a frozen encoder says the same of a row in every epoch. So the
    hidden states before the head are computed once a row, and an epoch costs what the
    head costs.

    Args:
      model: with stages, of which the last is the head.
      params: where to start; left as they are.
      train: training rows.
      dev: rows on which the epoch is selected; None = the last epoch is taken.
      config: `head_epochs` at `head_learning_rate`, and no other epochs.
      kind: kind of the task.
      metrics: their mean on dev is the score; default `DEFAULT_METRICS[kind]`.
      num_labels: columns of the head, if more than the task has labels.
      workdir: as in `fit`.
      name: of the fit.
      progress: whether to show a progress bar.

    Returns:
      FitResult with the whole tree, of which the head is trained.

    Raises:
      ValueError: the config trains more than the head, or drops out.
      Diverged: as `fit`.
    """
    _check(config, model)
    head = model.stages[-1]
    buckets = config.buckets or LENGTHS
    own, below = trees.partition(params, head.owns)

    def seen(rows: Encoded) -> Encoded:
        return with_features(model, below, rows, buckets=buckets)

    # `fit` would take the labels of the rows for the columns of the head.
    batches = TrainBatches(
        seen(train),
        config.batch_size,
        seed=config.seed,
        buckets=buckets,
        num_labels=num_labels,
    )
    result = fit(
        _head_model(model),
        own,
        batches,
        None if dev is None else seen(dev),
        dataclasses.replace(config, frozen=(*config.frozen, r"encoder/.*")),
        kind=kind,
        metrics=metrics,
        workdir=workdir,
        name=name,
        progress=progress,
    )
    leaves = trees.flatten(params) | trees.flatten(result.params)
    return result._replace(params=trees.unflatten(leaves))


def with_features(
    model: Model, params: Params, rows: Encoded, *, buckets: Sequence[int]
) -> Encoded:
    """Rows with the hidden states that the model's head reads of them.

    Args:
      model: with stages.
      params: at least the leaves of all stages but the last.
      rows: N rows of a split.
      buckets: ascending padded lengths of the forward pass.

    Returns:
      The rows without token ids, with `features`: for each row [D] of its one token
      that the head reads, or [T, D] of all its tokens, in the dtype of the
      computation. N D or N T D numbers of host memory.
    """
    program = _hidden(model)
    found: list[Any] = [None] * len(rows)
    # What is asked of the rows says nothing to the encoder, and would be compiled for.
    read = {"attention_mask", *rows.columns}
    for batch in eval_batches(rows, tokens_per_batch=TOKENS_PER_BATCH, buckets=buckets):
        inputs = {name: array for name, array in batch.items() if name in read}
        hidden = np.asarray(program(params, inputs))
        one_token = hidden.shape[1] == 1 < inputs["attention_mask"].shape[1]
        for place, row in enumerate(batch["index"]):
            if row >= 0:
                length = rows.lengths[row]
                states = hidden[place, 0] if one_token else hidden[place, :length]
                found[row] = np.array(states)  # A view would keep the whole batch.
    unread = ("input_ids", "token_type_ids")
    columns = {name: x for name, x in rows.columns.items() if name not in unread}
    return dataclasses.replace(rows, columns=columns, features=found)


@functools.lru_cache(maxsize=64)
def _hidden(model: Model) -> Callable[[Params, Batch], jax.Array]:
    """(params, batch) -> what the last stage would be handed, [B, T, D] or [B, 1, D].

    Kept for the process, as the programs of `fit` are.
    """

    @jax.jit
    def run(params: Params, batch: Batch) -> jax.Array:
        carry: Any = None
        for stage in model.stages[:-1]:
            carry = stage.apply(params, carry, batch)
        return carry

    return run


@functools.lru_cache(maxsize=64)
def _head_model(model: Model) -> Model:
    """The last stage as a model of batches with 'features'."""

    def apply(
        params: Params,
        batch: Batch,
        *,
        tap: Tap | None = None,
        dropout_key: Key | None = None,
    ) -> Outputs:
        return model.stages[-1].apply(
            params, batch["features"], batch, tap=tap, dropout_key=dropout_key
        )

    return Model(init=model.init, apply=apply, stages=())


def _check(config: FitConfig, model: Model) -> None:
    wrong = []
    if config.epochs or not config.head_epochs:
        wrong.append(
            f"epochs = {config.epochs} and head_epochs = {config.head_epochs}: only "
            "the head is trained here, set epochs = 0 and head_epochs to at least 1"
        )
    if config.dropout:
        wrong.append("dropout = True: the encoder runs once, set it to False")
    if not model.stages or not re.search(r"(^|\|)head/", model.stages[-1].owns):
        wrong.append("the model has no stages that end with its head")
    if wrong:
        raise ValueError(f"a probe: {'; '.join(wrong)}")
