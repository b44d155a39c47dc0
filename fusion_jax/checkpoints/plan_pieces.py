"""The tensors of a plan, computed one after another and piece by piece."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.checkpoints.leaves import COPY, Align, Streamers, read_leaf
from fusion_jax.checkpoints.output import Slot
from fusion_jax.checkpoints.plan import MergePlan, TensorPlan
from fusion_jax.checkpoints.regressed import REGMEAN, Regressed
from fusion_jax.checkpoints.slots import floating_dtype
from fusion_jax.checkpoints.statistics_file import read_statistics
from fusion_jax.merging import MERGES
from fusion_jax.merging.form import Facts


def pieces_of(
    plan: MergePlan,
    models: Mapping[str, LazyCheckpoint],
    slots: Sequence[Slot],
    seed: int,
    done: set[str],
    align: Align | None,
    shapes: Mapping[str, tuple[int, ...]],
    report: Callable[[str, Mapping[str, Any]], None] = lambda name, entry: None,
) -> Iterator[tuple[str, Iterator[tuple[int, np.ndarray]]]]:
    """The tensors that are still to be written, each as pieces.

    Args:
      plan: of the merge.
      models: by label.
      slots: of the output, one for each tensor of the plan.
      seed: of random masks.
      done: names of tensors that are there already.
      align: rows of tensors with a vocabulary axis -> rows of one vocabulary.
      shapes: of the tensors that `align` is for.
      report: called with a tensor that was regressed, and how.

    Yields:
      (tensor, its pieces: position of the first element and flat values).
    """
    streamers = Streamers(seed=seed)
    model_type = str(models[plan.donor].config().get("model_type", ""))
    dtype = None if plan.dtype is None else floating_dtype(plan.dtype)
    statistics = {x: read_statistics(file) for x, file in plan.statistics.items()}
    regressed = Regressed(plan, models, statistics, slots, report)
    by_slot = dict(zip((t.name for t in plan.tensors), slots, strict=True))

    def leaf(tensor: TensorPlan) -> Any:
        return read_leaf(
            tensor,
            models,
            dtype=dtype,
            align=align if tensor.name in shapes else None,
            statistics=statistics,
        )

    of_models: dict[int, list[TensorPlan]] = {}
    whole: list[TensorPlan] = []
    for tensor in plan.tensors:
        if not by_slot[tensor.name].num_bytes:
            if tensor.name not in done:
                yield tensor.name, iter(())
        elif tensor.method == COPY:
            if tensor.name not in done:
                yield tensor.name, _copied(leaf(tensor), by_slot[tensor.name].dtype)
        elif tensor.method == REGMEAN:
            yield from regressed.pieces(tensor, done)
        elif MERGES[tensor.method].form is None:
            whole.append(tensor)
        else:
            streamer = streamers.of(tensor, model_type)
            if streamer.form.scope == "model":
                of_models.setdefault(id(streamer), []).append(tensor)
            elif tensor.name not in done:
                one = leaf(tensor)
                facts = streamer.facts([one])[0]
                target = by_slot[tensor.name].dtype
                yield tensor.name, streamer.merged(one, facts, target)
    for group in of_models.values():
        if all(tensor.name in done for tensor in group):
            continue
        streamer = streamers.of(group[0], model_type)
        leaves = [leaf(tensor) for tensor in group]
        all_facts: Sequence[Facts] = streamer.facts(leaves)
        for tensor, one, facts in zip(group, leaves, all_facts, strict=True):
            if tensor.name not in done:
                target = by_slot[tensor.name].dtype
                yield tensor.name, streamer.merged(one, facts, target)
    if any(tensor.name not in done for tensor in whole):
        yield from _in_memory(whole, leaf, by_slot, seed)


def _copied(leaf: Any, dtype: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
    flat = leaf.experts[0].reshape(-1)
    step = 2**22
    for start in range(0, len(flat), step):
        yield start, flat[start : start + step].astype(dtype, copy=False)


def _in_memory(
    group: Sequence[TensorPlan],
    leaf: Callable[[TensorPlan], Any],
    slots: Mapping[str, Slot],
    seed: int,
) -> Iterator[tuple[str, Iterator[tuple[int, np.ndarray]]]]:
    """Methods that need whole models at once: all tensors of one method together."""
    first = group[0]
    record = MERGES[first.method]
    leaves = {tensor.name: leaf(tensor) for tensor in group}
    given: dict[str, Any] = dict(first.options)
    if "base" in record.needs | record.accepts and first.base is not None:
        given["base"] = {n: np.asarray(x.base, np.float32) for n, x in leaves.items()}
    if "key" in record.needs:
        given["key"] = jax.random.key(seed)
    stack = {n: np.stack(x.experts, dtype=np.float32) for n, x in leaves.items()}
    merged: Any = record.function(
        jax.device_put(stack), np.asarray(first.coefficients, np.float32), **given
    )
    merged = merged if isinstance(merged, Mapping) else merged[0]
    for name, values in trees.flatten(merged).items():
        flat = np.asarray(values).reshape(-1).astype(slots[name].dtype)
        yield name, iter([(0, flat)])
