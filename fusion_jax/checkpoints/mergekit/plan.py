"""A mergekit YAML file and its models as a plan of what every output tensor is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion_jax.checkpoints.mergekit.config import (
    MergekitConfig,
    Module,
    Slice,
    read_config,
)
from fusion_jax.checkpoints.mergekit.methods import METHODS
from fusion_jax.checkpoints.mergekit.models import Models, open_models
from fusion_jax.checkpoints.mergekit.output import (
    check_shapes,
    config_changes,
    tokenizer_options,
)
from fusion_jax.checkpoints.mergekit.rows import Covers, Part, Row, stacked, whole
from fusion_jax.checkpoints.mergekit.tensors import tensor_plans
from fusion_jax.checkpoints.mergekit.yaml import Reading
from fusion_jax.checkpoints.plan import MergePlan, TensorPlan

_HOMES = {"lm_head": ("decoder", "text_decoder"), "language_model": ("text_decoder",)}
"""Modules of tensors whose names do not say theirs."""


def read_plan(
    text: str, directory: Path, *, lenient: bool = False, random_seed: int = 0
) -> MergePlan:
    """Plans what a mergekit YAML file asks for; opens headers, reads no weight.

    The meaning of a file is mergekit's, but for these: an unknown key is an error; DARE
    and DELLA rescale by the inverse of the probability; without base_model the first
    listed model gives config and tokenizer; weights whose sum is 0 are an error.

    Args:
      text: YAML.
      directory: of the file; models are looked for below the current directory first.
      lenient: unknown keys and parameters are notes.
      random_seed: that random masks will be drawn from, for the notes.

    Raises:
      MergekitError: lists every fault, with lines of the file where it has one.
    """
    reading = Reading(lenient=lenient)
    config = read_config(text, reading)
    models = open_models(config, directory, reading)
    rows = _rows(config, models, reading)
    reading.check()
    check_shapes(rows, reading, vocabulary=config.tokenizer is not None)
    reading.check()
    tensors = tensor_plans(config.merge_method, rows, reading)
    reading.check()
    base = None if config.base is None else models.labels[config.base]
    donor = base or next(iter(models.by_label))
    tokenizer = tokenizer_options(config, models, base, reading)
    reading.check()
    if base is None and len(models.by_label) > 1:
        reading.note(
            (),
            f"no base_model: config and tokenizer are those of '{donor}', the first "
            "model listed",
        )
    _say_choices(tensors, random_seed, reading)
    return MergePlan(
        models={
            label: model.checkpoint.directory
            for label, model in models.by_label.items()
        },
        tensors=tensors,
        donor=donor,
        dtype=config.dtype,
        out_dtype=config.out_dtype or config.dtype,
        config_changes=config_changes(config, models.by_label[donor], rows, reading),
        tokenizer=tokenizer,
        chat_template=config.chat_template,
        notes=tuple(reading.notes),
    )


def _rows(config: MergekitConfig, models: Models, reading: Reading) -> list[Row]:
    rows: list[Row] = []
    for name, module in config.modules.items():
        covers = _cover(name, config.modules)
        parts = [_part(config, module, part, models, reading) for part in module.slices]
        reading.check()
        found = (
            stacked(parts, covers, reading)
            if module.stacked
            else whole(parts[0], covers, reading)
        )
        if not found and not reading.faults:
            reading.fault(("modules", name), "no tensor belongs to this module")
        rows += found
    _check_covered(config, rows, reading)
    return rows


def _check_covered(
    config: MergekitConfig, rows: Sequence[Row], reading: Reading
) -> None:
    """Every tensor of the first input is in some module."""
    if not rows or "" in config.modules:
        return
    covers = [_cover(name, config.modules) for name in config.modules]
    outside = [
        tensor
        for tensor in rows[0].part.models[0].checkpoint.tensors
        if not any(covered(tensor) for covered in covers)
    ]
    if outside:
        reading.fault(
            ("modules",),
            f"no module covers {', '.join(outside[:12])}"
            f"{f' and {len(outside) - 12} more' if len(outside) > 12 else ''}",
        )


def _cover(name: str, modules: Mapping[str, Module]) -> Covers:
    """Which tensors belong to a module: by a part of the name, or all to the one."""
    if len(modules) == 1 and name in ("", "default"):
        return lambda tensor: True

    def covers(tensor: str) -> bool:
        parts = tensor.split(".")
        owner = next((part for part in parts if part in modules), None)
        if owner is None:
            homes = [home for part in parts for home in _HOMES.get(part, ())]
            owner = next((home for home in homes if home in modules), None)
        return owner == name

    return covers


def _part(
    config: MergekitConfig,
    module: Module,
    part: Slice,
    models: Models,
    reading: Reading,
) -> Part:
    method = METHODS[config.merge_method]
    inputs = list(part.inputs)
    chosen = [models.named(given.model) for given in inputs]
    labels = [model.label for model in chosen]
    layers = [given.layers for given in inputs]
    own = [given.parameters for given in inputs]
    named = part.base or config.base
    base = None if named is None else models.named(named)
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        reading.fault(part.path, f"'{label}' is listed twice; list each model once")
    if base is not None and not module.stacked and base.label not in labels:
        chosen.append(base)
        layers.append(None)
        own.append({})
    elif base is not None and base.label not in labels and method.base != "input":
        reading.fault(
            part.path,
            f"the base '{base.label}' is not among its sources; list it with its "
            "layer_range",
        )
    if base is None and method.base == "required":
        reading.fault(part.path, f"{config.merge_method} requires a base_model")
    least, most = method.inputs
    apart = method.base == "optional" and base is not None
    count = len(chosen) - apart
    if count < least or (most is not None and count > most):
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        reading.fault(
            part.path,
            f"{config.merge_method} takes {wanted} inputs"
            f"{' besides the base' if apart else ''}, here are {count}: "
            f"{', '.join(model.label for model in chosen)}",
        )
    if method.base == "input" and base is not None and len(chosen) > 1:
        reading.note(
            part.path,
            f"to {config.merge_method} the base_model '{base.label}' is one more input",
        )
    return Part(
        models=tuple(chosen),
        layers=tuple(layers),
        own=tuple(own),
        scopes=(part.parameters, module.parameters, config.parameters),
        base=base,
        path=part.path,
    )


def _say_choices(
    tensors: Sequence[TensorPlan], random_seed: int, reading: Reading
) -> None:
    rescaled = {tensor.options.get("rescale") for tensor in tensors}
    if rescaled - {None}:
        reading.note((), f"random masks are drawn from the seed {random_seed}")
    if "inverse" in rescaled:
        reading.note(
            (),
            "rescale: true divides by the probability of keeping an entry; mergekit "
            "keeps the L1 norm of each tensor instead",
        )
