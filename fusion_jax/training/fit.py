"""fit() for one expert, fit_stack() for many: the same step and the same loop."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fusion_jax.data.batches import LENGTHS, TrainBatches
from fusion_jax.data.encoded import Encoded
from fusion_jax.evaluation.metrics import DEFAULT_METRICS
from fusion_jax.models.partition import PARTITION_RULES
from fusion_jax.training.config import FitConfig
from fusion_jax.training.evaluate import DevJudge, DevSets, Judged
from fusion_jax.training.feed import Batches, Feed
from fusion_jax.training.log import MetricsLog
from fusion_jax.training.loop import Group, train_group
from fusion_jax.training.resume import Course, Saver, identity_of
from fusion_jax.training.sharding import default_mesh, place, shardings
from fusion_jax.training.state import as_float32
from fusion_jax.training.width import choose_width, estimate_bytes
from fusion_jax.trees import (
    Rules,
    combine,
    flatten,
    num_bytes,
    partition,
    stack_size,
    unflatten,
)
from fusion_jax.types import Batch, Model, Params, ParamStack

Train = Encoded | Batches


class FitResult(NamedTuple):
    """What a fit gives back.

    Attributes:
      params: of `fit` the whole tree, of `fit_stack` the stack [K, ...] without the
        shared leaves; float32; of the epoch that was selected.
      best_epoch: that epoch, counted from 0; of `fit_stack` a tuple of K.
      history: one record an expert an epoch, as in metrics.jsonl: 'expert', 'epoch',
        'phase', 'step', 'train_loss', 'dev' (mean of the metrics), 'dev_loss',
        'metrics', 'kept', 'tokens', 'seconds'.
      seconds: all starts together.
      tokens: real tokens that were learned from, all experts together.
    """

    params: Params
    best_epoch: Any
    history: list[dict[str, Any]]
    seconds: float
    tokens: int


def fit(
    model: Model,
    params: Params,
    train: Train,
    dev: Encoded | DevJudge | None,
    config: FitConfig,
    *,
    kind: str,
    metrics: Sequence[str] | None = None,
    workdir: str | Path | None = None,
    mesh: Mesh | None = None,
    rules: Rules[PartitionSpec] = PARTITION_RULES,
    name: str = "fit",
    progress: bool = True,
) -> FitResult:
    """Fine-tunes one expert.

    Leaves that `config.frozen` names have neither gradient nor optimizer state; the
    others are trained in float32 by AdamW on the mean loss of a batch's real rows.

    Args:
      model: the model; it computes in `config.dtype`.
      params: where to start; left as they are.
      train: training rows, or ready batches.
      dev: rows on which the epoch is selected, or a function `params -> DevScore`,
        such as of several tasks; None = the last epoch is taken.
      config: how to train.
      kind: kind of the task, which names the loss.
      metrics: their mean on dev is the score; default `DEFAULT_METRICS[kind]`.
      workdir: folder for metrics.jsonl and the train state. A fit that was killed
        goes on from there and ends with the same parameters; a finished one is read.
      mesh: mesh of `make_mesh`; default one device.
      rules: partition rules of the leaves.
      name: of the fit, in metrics.jsonl and in the state's folder.
      progress: whether to show a progress bar.

    Returns:
      FitResult.

    Raises:
      Diverged: a loss or gradient is not finite; names the step.
      ValueError: workdir holds another fit, or model and config do not fit.
    """
    shared, trained = partition(params, config.frozen)
    if not trained:
        raise ValueError(
            f"{name}: nothing to train, FitConfig.frozen {list(config.frozen)} matches "
            "every leaf; freeze less"
        )
    result = fit_stack(
        model,
        jax.tree.map(lambda x: jnp.asarray(x)[None], trained),
        shared,
        [train],
        dev,
        config,
        kind=kind,
        names=(name,),
        metrics=metrics,
        workdir=workdir,
        mesh=mesh,
        rules=rules,
        name=name,
        progress=progress,
    )
    tuned = jax.tree.map(lambda x: x[0], result.params)
    leaves = flatten(combine(shared, tuned))
    # In the order of the tree that came in.
    whole = unflatten({leaf: leaves[leaf] for leaf in flatten(params)})
    return result._replace(params=whole, best_epoch=result.best_epoch[0])


def fit_stack(
    model: Model,
    stack: ParamStack,
    shared: Params,
    trains: Train | Sequence[Train],
    devs: Encoded | Sequence[Encoded] | DevJudge | None,
    config: FitConfig,
    *,
    kind: str,
    names: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    workdir: str | Path | None = None,
    mesh: Mesh | None = None,
    rules: Rules[PartitionSpec] = PARTITION_RULES,
    name: str = "fit",
    progress: bool = True,
    together: int | None = None,
) -> FitResult:
    """Fine-tunes K experts, each as `fit` would alone.

    Experts train together in one program (vmap over the expert axis, spread over the
    mesh axis 'expert') in groups as large as memory allows; on a CPU, where that is
    slower, one after another.

    Args:
      model: the model of all experts, with labels for the largest task.
      stack: where to start, leaves [K, ...]; left as they are. Leaves that
        `config.frozen` names are not trained.
      shared: leaves [...] of all experts; never trained.
      trains: training rows or batches of each expert, or one for all. They are of one
        kind; batches of one batch_size and, for the largest task, of one label count.
      devs: dev rows of each expert, or one for all, or None; of a single expert also a
        function, as in `fit`.
      config: how to train.
      kind: kind of the tasks.
      names: of the K experts; an expert's dropout depends on its name alone.
      metrics: their mean on dev is the score; default `DEFAULT_METRICS[kind]`.
      workdir: as in `fit`.
      mesh: mesh of `make_mesh`; default one device.
      rules: partition rules of leaves without expert axis.
      name: of the fit.
      progress: whether to show a progress bar.
      together: experts in one program; default by device and memory.

    Returns:
      FitResult with a stack and a tuple of best epochs.

    Raises:
      Diverged: a loss or gradient is not finite; names the expert and the step.
      ValueError: workdir holds another fit, or the arguments do not fit together.
    """
    size = stack_size(stack)
    mesh = default_mesh() if mesh is None else mesh
    names = tuple(names or (f"expert_{k}" for k in range(size)))
    metrics = tuple(metrics or DEFAULT_METRICS[kind])
    sources = as_batches(_for_each(trains, size, "trains"), config)
    judge = devs if callable(devs) else None
    if judge is not None and size != 1:
        raise ValueError(f"devs: a function scores one expert, and there are {size}")
    dev_sets = None
    if devs is not None and judge is None:
        dev_sets = _for_each(devs, size, "devs")
    if len(set(names)) != size:
        raise ValueError(f"{size} experts need {size} different names, not {names}")
    first = sources[0].batch(0)
    _check_dtype(model, jax.tree.map(lambda x: x[0], stack), shared, first, config)
    width = together or _width(model, stack, shared, sources, config, mesh)
    shared = place(shared, shardings(shared, rules, mesh), copy=False)
    log = MetricsLog(workdir)
    courses, parts = [], []
    for start in range(0, size, width):
        group_slice = slice(start, start + width)
        part = as_float32(jax.tree.map(lambda x, s=group_slice: x[s], stack))
        part = place(part, shardings(part, rules, mesh, stacked=True))
        feed = Feed(sources[group_slice], mesh)
        own = [] if dev_sets is None else dev_sets[group_slice]
        identity = {}
        folder = None
        if workdir is not None:
            folder = Path(workdir) / "state" / _slug(name, names[group_slice])
            identity = identity_of(
                config,
                kind,
                names[group_slice],
                metrics,
                part,
                feed,
                [len(dev) for dev in own] if judge is None else [-1],
            )
        saver = Saver(folder, identity, config.save_seconds)
        done = saver.finished(part)
        if done is None:
            dev_set = None if judge is None else Judged(judge)
            if own:
                dev_set = DevSets(
                    model,
                    kind,
                    own,
                    metrics=metrics,
                    num_labels=_num_labels(first),
                    buckets=config.buckets or LENGTHS,
                    mesh=mesh,
                )
            group = Group(
                name,
                names[group_slice],
                model,
                kind,
                part,
                shared,
                feed,
                dev_set,
                config,
                mesh,
                rules,
            )
            done = train_group(group, saver, log, progress=progress)
        courses.append(done[0])
        parts.append(done[1])
    return _joined(stack, courses, parts)


def as_batches(trains: Sequence[Train], config: FitConfig) -> list[Batches]:
    """Training batches as the config says; what is batches already stays.

    Args:
      trains: rows or batches; the same object twice gives the same batches twice.
      config: batch_size, seed, buckets.
    """
    encoded = [train for train in trains if isinstance(train, Encoded)]
    labels = max((train.num_labels for train in encoded), default=None)
    made = {
        id(train): TrainBatches(
            train,
            config.batch_size,
            seed=config.seed,
            buckets=config.buckets or LENGTHS,
            num_labels=labels,
        )
        for train in encoded
    }
    return [
        made[id(train)] if isinstance(train, Encoded) else train for train in trains
    ]


def _joined(
    stack: ParamStack, courses: list[Course], parts: list[ParamStack]
) -> FitResult:
    whole = parts[0]
    if len(parts) > 1:
        whole = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
    leaves = flatten(whole)
    return FitResult(
        unflatten({leaf: leaves[leaf] for leaf in flatten(stack)}),
        tuple(s.best_epoch for course in courses for s in course.standings),
        [record for course in courses for record in course.history],
        sum(course.seconds for course in courses),
        sum(sum(course.tokens) for course in courses),
    )


def _width(
    model: Model,
    stack: ParamStack,
    shared: Params,
    sources: Sequence[Batches],
    config: FitConfig,
    mesh: Mesh,
) -> int:
    def bytes_per_expert() -> int:
        one = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], jnp.float32), stack
        )
        held, trained = partition(one, config.frozen)
        firsts = [source.batch(step) for source in sources for step in range(4)]
        longest = max(firsts, key=lambda batch: sum(map(np.size, batch.values())))
        return estimate_bytes(model, trained, combine(held, shared), longest, config)

    return choose_width(stack_size(stack), bytes_per_expert, num_bytes(shared), mesh)


def _for_each(given: Any, size: int, what: str) -> list[Any]:
    """One for all, or one each."""
    if not isinstance(given, Sequence):
        return [given] * size
    if len(given) != size or any(one is None for one in given):
        raise ValueError(
            f"{what}: {len(given)} for {size} experts; pass one for each, or a single "
            "one for all"
        )
    return list(given)


def _check_dtype(
    model: Model, params: Params, shared: Params, batch: Batch, config: FitConfig
) -> None:
    """Raises where the first stage computes in another dtype than the config says."""
    if not model.stages:
        return
    whole = combine(params, shared)
    embed = model.stages[0].apply
    carry = jax.eval_shape(lambda p, b: embed(p, None, b), whole, dict(batch))
    found = {x.dtype for x in jax.tree.leaves(carry)}
    floating = {str(d) for d in found if jnp.issubdtype(d, jnp.floating)}
    if floating and config.dtype not in floating:
        raise ValueError(
            f"FitConfig.dtype is {config.dtype}, but the model computes in "
            f"{', '.join(sorted(floating))}: build it with dtype={config.dtype}"
        )


def _num_labels(batch: Batch) -> int | None:
    mask = batch.get("label_mask")
    return None if mask is None else len(mask)


def _slug(name: str, experts: Sequence[str]) -> str:
    """A folder's name for a group of experts."""
    parts = [name, *(expert for expert in experts if expert != name)]
    return re.sub(r"[^\w.=-]+", "_", "+".join(parts))[:120]
