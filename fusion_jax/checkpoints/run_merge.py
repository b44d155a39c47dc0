"""A plan carried out in full: vocabulary, weights, config, tokenizer, card."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.checkpoints.lazy import LazyCheckpoint, open_checkpoint
from fusion_jax.checkpoints.leaves import COPY, numbers_and_words
from fusion_jax.checkpoints.merge import SHARD_BYTES, Merged, merge
from fusion_jax.checkpoints.merge_card import write_companions
from fusion_jax.checkpoints.merge_report import planned_counts
from fusion_jax.checkpoints.pieces import PIECE
from fusion_jax.checkpoints.plan import MergePlan
from fusion_jax.checkpoints.regressed import REGMEAN, regression_memory
from fusion_jax.checkpoints.slots import slot_of
from fusion_jax.merging import MERGES


class DryRun(NamedTuple):
    """What a plan will do and take.

    Attributes:
      text: for a person.
      record: for machines: 'tensors', 'methods', 'bytes_in', 'bytes_out',
        'memory_bytes', 'sources', 'out_dtype', 'effective' (one entry for each way);
        with statistics also 'statistics', label -> file, and 'counts', how -> tensors.
    """

    text: str
    record: dict[str, Any]


def run_merge(
    plan: MergePlan,
    out: Path,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    recipe: str | None = None,
    command: str = "",
    progress: Callable[[str, int], None] | None = None,
) -> Merged:
    """Merges by a plan and writes what makes the folder a model.

    Args:
      plan: of the merge.
      out: folder of the output.
      seed: of random masks.
      shard_bytes: most bytes of a weight file.
      allow_nonfinite: merge NaN and infinity too.
      overwrite: replace a folder that is there.
      recipe: text of a mergekit file, to be kept.
      command: that is written into the card.
      progress: called with (tensor, bytes written).

    Raises:
      CheckpointError, FileExistsError, WriteFailed: as `merge.merge`.
    """
    vocabulary = None
    if plan.tokenizer is not None:
        from fusion_jax.checkpoints.vocabulary.merge import MergeVocabulary

        vocabulary = MergeVocabulary(plan)
        plan = vocabulary.plan
    random = any(
        t.method != COPY and "key" in MERGES[t.method].needs for t in plan.tensors
    )

    def finish(folder: Path, found: Mapping[str, Any]) -> None:
        write_companions(
            plan,
            folder,
            found,
            name=out.name,
            seed=seed if random else None,
            command=command,
            config_text=recipe,
            tokenizer=vocabulary is None,
        )
        if vocabulary is not None:
            vocabulary.write(folder)
        elif plan.chat_template is not None:
            from fusion_jax.checkpoints.vocabulary.merge import write_chat_template

            write_chat_template(plan, folder)

    return merge(
        plan,
        out,
        seed=seed,
        shard_bytes=shard_bytes,
        allow_nonfinite=allow_nonfinite,
        overwrite=overwrite,
        finish=finish,
        align=None if vocabulary is None else vocabulary.align,
        aligned_shapes=None if vocabulary is None else vocabulary.shapes,
        progress=progress,
    )


def dry_run(plan: MergePlan) -> DryRun:
    """Describes a plan; reads headers alone."""
    models = {label: open_checkpoint(path) for label, path in plan.models.items()}
    ways: dict[tuple[Any, ...], list[str]] = {}
    bytes_out = 0
    for tensor in plan.tensors:
        options = {k: v for k, v in tensor.options.items() if v is not None}
        row = tuple(round(c, 6) for c in tensor.coefficients)
        sources = tuple(s.model for s in tensor.sources)
        way = tensor.method, sources, row, repr(options)
        ways.setdefault(way, []).append(tensor.name)
        bytes_out += slot_of(tensor, plan, models, {}).num_bytes
    record = {
        "tensors": len(plan.tensors),
        "methods": sorted({t.method for t in plan.tensors}),
        "sources": {label: str(path) for label, path in plan.models.items()},
        "bytes_in": sum(model.num_bytes for model in models.values()),
        "bytes_out": bytes_out,
        "memory_bytes": memory(plan, models),
        "out_dtype": plan.out_dtype or plan.dtype,
        "effective": [
            {
                "method": method,
                "sources": list(sources),
                "coefficients": list(row),
                "options": options,
                "tensors": len(names),
                "first": names[0],
            }
            for (method, sources, row, options), names in ways.items()
        ],
    }
    if plan.statistics:
        record["statistics"] = {x: str(file) for x, file in plan.statistics.items()}
        record["counts"] = planned_counts(plan)
    lines = [
        f"{len(plan.tensors)} tensors, {_size(record['bytes_in'])} in, "
        f"{_size(bytes_out)} out, about {_size(record['memory_bytes'])} of memory "
        "beside the program itself"
    ]
    for way in record["effective"][:20]:
        weights = ", ".join(
            f"{label} {c:g}"
            for label, c in zip(way["sources"], way["coefficients"], strict=False)
        ) or ", ".join(way["sources"])
        options = "" if way["options"] == "{}" else f" {way['options'][1:-1]}"
        lines.append(
            f"  {way['method']}: {weights};{options} ({way['tensors']} tensors)"
        )
    if len(record["effective"]) > 20:
        lines.append(f"  and {len(record['effective']) - 20} other ways")
    return DryRun("\n".join(lines), record)


def memory(plan: MergePlan, models: Mapping[str, LazyCheckpoint]) -> int:
    """Bytes that the merge holds at most, beside the program itself: an estimate.

    By the units of the forms: a piece of all models in float64 with what is computed
    from it, or whole tensors where the method needs them.
    """
    most, together, count = 0, 0, 1
    selected: dict[bool, list[int]] = {False: [0], True: [0]}
    for tensor in plan.tensors:
        info = models[tensor.sources[0].model].tensors[tensor.sources[0].tensor]
        count = len(tensor.sources) + 1
        if tensor.method == COPY:
            continue
        if tensor.method == REGMEAN:
            # Not by the number of models: one expert is held at a time.
            axis = tensor.options.get("input_axis")
            if axis is not None:  # a bias comes with its kernel
                most = max(most, regression_memory(info.shape, axis))
            continue
        record = MERGES[tensor.method]
        if record.form is None:
            together += 3 * 4 * count * info.size
            continue
        _, words = numbers_and_words(tensor.method, tensor.options)
        form = record.form(**words)
        if tensor.method == "mats":
            square = (info.shape[0] + 1) ** 2 + (info.shape[1] + 1) ** 2
            most = max(most, 3 * 8 * count * (square + info.size))
            continue
        # Whole tensors where rows do not lie together, or values are changed first.
        turned = form.unit == "row" and form.input_axis != -1
        recast = plan.dtype is not None and str(info.dtype) != plan.dtype
        size = info.size if form.unit == "leaf" or turned else min(info.size, PIECE)
        size *= 2 if plan.statistics else 1  # a piece of statistics for each of weights
        most = max(most, 8 * 4 * count * size + 4 * count * info.size * recast)
        if form.passes:
            selected[form.scope == "model"].append(int(0.03 * 4 * count * info.size))
    # A threshold of one tensor at a time, or of all together.
    most += max([*selected[False], min(sum(selected[True]), 2**28 * count // 8)])
    return most + together


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
