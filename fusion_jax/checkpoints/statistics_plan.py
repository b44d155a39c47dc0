"""A plan whose method reads statistics: which tensors have some, which are averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints.block_names import is_embedding, is_head
from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.checkpoints.leaves import COPY
from fusion_jax.checkpoints.merge_report import AVERAGE
from fusion_jax.checkpoints.plan import MergePlan, TensorPlan
from fusion_jax.checkpoints.statistics_check import NEEDED, checked_statistics
from fusion_jax.checkpoints.statistics_file import Layer
from fusion_jax.merging.record import Merge


def check_given(
    method: str,
    record: Merge,
    weights: Sequence[float],
    options: Mapping[str, Any],
    statistics: Sequence[Path] | None,
) -> None:
    """Refuses files of statistics in a wrong number, or where none are read.

    Args:
      method: as it was asked for.
      record: of the method.
      weights: [K].
      options: of the method.
      statistics: K files, or None.

    Raises:
      ValueError: names the option and the remedy.
    """
    if "statistics" not in record.needs:
        if statistics is not None:
            raise ValueError(
                f"--statistics: {method} reads none; {', '.join(NEEDED)} do"
            )
        return
    if method not in NEEDED:
        raise ValueError(
            f"{method}: needs statistics that no file holds; call fusion_jax.{method} "
            "with statistics="
        )
    if not statistics:
        raise ValueError(
            f"{method}: needs statistics of each model's data; write one file a model "
            f"with fusion-jax statistics --kind {NEEDED[method]}, and pass them with "
            "--statistics in the order of --models"
        )
    if len(statistics) != len(weights):
        raise ValueError(
            f"--statistics: {len(statistics)} files for {len(weights)} models; give "
            "one for each, in their order"
        )
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(
            f"--weights: {list(weights)}; {method} divides by sums of them: give "
            "numbers from 0 on, not all 0"
        )
    for option in ("alpha", "ridge", "floor", "iterations"):
        value = options.get(option, 0)
        most = 1 if option == "alpha" else float("inf")
        if not isinstance(value, int | float) or not 0 <= value <= most:
            raise ValueError(
                f"--set {option}: {value} is not one number from 0 "
                + ("to 1" if option == "alpha" else "on")
            )


def with_statistics(
    plan: MergePlan,
    method: str,
    models: Mapping[str, LazyCheckpoint],
    files: Sequence[Path],
) -> MergePlan:
    """Gives a plan its files of statistics.

    Args:
      plan: that treats every floating tensor by the method.
      method: 'regmean', 'mats' or 'fisher'.
      models: the experts by label, as they are in their files.
      files: K, in their order.

    Returns:
      The plan, tensors without statistics averaged by the same coefficients over their
      sum.

    Raises:
      CheckpointError: files that do not fit; every fault is listed.
    """
    found = checked_statistics(method, models, files)
    first = next(iter(found.values()))
    layers = first.manifest.layers
    known = set(layers) if layers else set(first.arrays.tensors)
    tied = _tied(models)
    # One matrix in two roles: the Gram would be that of the head alone.
    averaged = {tied} if layers and tied is not None else set()
    solved = {layers[name].bias for name in layers if name not in averaged}

    def planned(tensor: TensorPlan) -> TensorPlan:
        if tensor.method == COPY:
            return tensor
        if tensor.name in known - averaged:
            return _with_layout(tensor, method, layers)
        if tensor.options.get("biases") and tensor.name in solved:
            return tensor
        return _average(tensor)

    tensors = [planned(tensor) for tensor in plan.tensors]
    notes = list(plan.notes)
    left = sum(tensor.method == AVERAGE for tensor in tensors)
    notes.append(
        f"{method}: {sum(t.method == method for t in tensors)} tensors by statistics, "
        f"{left} averaged"
    )
    if tied is not None and layers:
        notes.append(f"{tied}: is embedding and head in one; averaged")
    return replace(
        plan,
        tensors=tuple(tensors),
        notes=tuple(notes),
        statistics=dict(zip(models, map(Path, files), strict=True)),
    )


def _with_layout(
    tensor: TensorPlan, method: str, layers: Mapping[str, Layer]
) -> TensorPlan:
    if method == "fisher":
        return tensor
    axis = layers[tensor.name].input_axis
    return replace(tensor, options={**tensor.options, "input_axis": axis})


def _average(tensor: TensorPlan) -> TensorPlan:
    total = sum(tensor.coefficients)
    return replace(
        tensor,
        method=AVERAGE,
        base=None,
        coefficients=tuple(c / total for c in tensor.coefficients),
        options={},
    )


def _tied(models: Mapping[str, LazyCheckpoint]) -> str | None:
    """The embedding that is the head of a language model as well."""
    first = next(iter(models.values()))
    config = first.config()
    heads = any(
        name.endswith(("LMHeadModel", "ForCausalLM", "ForConditionalGeneration"))
        for name in config.get("architectures") or ()
    )
    if not heads or config.get("tie_word_embeddings") is False:
        return None
    if any(is_head(name) for model in models.values() for name in model.tensors):
        return None
    return next((name for name in first.tensors if is_embedding(name)), None)
