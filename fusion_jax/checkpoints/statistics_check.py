"""Files of statistics against the models that they are said to be of."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.checkpoints.statistics_file import (
    KINDS,
    LazyStatistics,
    read_statistics,
    weights_sha256,
)
from fusion_jax.checkpoints.tensors import CheckpointError

NEEDED = {"regmean": "gram", "mats": "gram", "fisher": "fisher"}
"""Method -> kind of statistics that it reads from files."""

_OUTPUTS = frozenset({"mats"})  # methods that read gradients at outputs as well
_PIECE = 2**22
_MOST = 40


def checked_statistics(
    method: str, models: Mapping[str, LazyCheckpoint], files: Sequence[Path]
) -> dict[str, LazyStatistics]:
    """Opens one file for each model, and refuses what does not belong to it.

    Args:
      method: of `NEEDED`.
      models: the experts by label, without the base.
      files: K, in the order of the models.

    Returns:
      label -> statistics.

    Raises:
      CheckpointError: lists every fault: a file that cannot be read, another kind,
        other weights (or those of another of the models), tensors that the model
        lacks, shapes that do not fit, no tokens, NaN, infinity or a negative Fisher,
        layers that not all files have.
    """
    faults: list[str] = []
    found: dict[str, LazyStatistics] = {}
    for label, file in zip(models, files, strict=True):
        try:
            found[label] = read_statistics(file)
        except CheckpointError as error:
            faults.append(str(error))
    hashes = {label: weights_sha256(model) for label, model in models.items()}
    for label, statistics in found.items():
        kind = _kind_fault(method, statistics)
        faults += [*kind, *_owner_faults(label, statistics, hashes)]
        if not kind:
            faults += _shape_faults(method, statistics, models[label])
            faults += _value_faults(statistics)
    same_kind = {x.manifest.kind for x in found.values()} == {NEEDED[method]}
    if same_kind:
        faults += _layer_faults(method, found)
    if faults:
        lines = "\n  ".join(faults[:_MOST])
        more = f"\n  and {len(faults) - _MOST} more" if len(faults) > _MOST else ""
        raise CheckpointError(
            f"{method}: {len(faults)} faults of --statistics:\n  {lines}{more}"
        )
    return found


def _kind_fault(method: str, statistics: LazyStatistics) -> list[str]:
    name, kind = statistics.file, statistics.manifest.kind
    if kind not in KINDS:
        return [f"{name}: statistics of kind '{kind}', known are {', '.join(KINDS)}"]
    if kind != NEEDED[method]:
        return [
            f"{name}: holds statistics of kind '{kind}', {method} reads "
            f"'{NEEDED[method]}'; write them with --kind {NEEDED[method]}"
        ]
    return []


def _owner_faults(
    label: str, statistics: LazyStatistics, hashes: Mapping[str, str]
) -> list[str]:
    held = statistics.manifest.weights_sha256
    if held == hashes[label]:
        return []
    name = statistics.file
    owner = next((other for other, known in hashes.items() if known == held), None)
    if owner is not None:
        return [
            f"{name}: is of the model {owner}, and stands in the place of {label}; "
            "write --statistics in the order of --models"
        ]
    return [
        f"{name}: is of other weights than {label} has (of '"
        f"{statistics.manifest.model}', SHA-256 {held[:12]}, not "
        f"{hashes[label][:12]}); run fusion-jax statistics on this model"
    ]


def _shape_faults(
    method: str, statistics: LazyStatistics, model: LazyCheckpoint
) -> list[str]:
    name, manifest = statistics.file, statistics.manifest
    found = []
    if manifest.kind == "fisher":
        if not statistics.arrays.tensors:
            found.append(f"{name}: holds no Fisher")
        if not manifest.examples:
            found.append(f"{name}: is of 0 examples")
        for tensor, info in statistics.arrays.tensors.items():
            own = model.tensors.get(tensor)
            if own is None:
                found.append(f"{name}: {tensor} is no tensor of the model")
            elif own.shape != info.shape:
                found.append(
                    f"{name}: {tensor} has shape {info.shape}, in the model {own.shape}"
                )
        return found
    if not manifest.layers:
        found.append(f"{name}: holds no layer")
    for tensor, layer in manifest.layers.items():
        own = model.tensors.get(tensor)
        if own is None:
            found.append(f"{name}: {tensor} is no tensor of the model")
            continue
        if layer.bias is not None and layer.bias not in model.tensors:
            found.append(f"{name}: {layer.bias} is no tensor of the model")
        if layer.input_axis not in (-1, -2) or len(own.shape) != 2:
            found.append(
                f"{name}: {tensor} of shape {own.shape} with input axis "
                f"{layer.input_axis} is no kernel of a linear layer"
            )
            continue
        width = own.shape[layer.input_axis]
        if statistics.width(tensor) != width + 1:
            found.append(
                f"{name}: {tensor} reads {width} inputs, its Gram is of "
                f"{statistics.width(tensor) - 1}"
            )
        if not statistics.tokens(tensor) > 0:
            found.append(f"{name}: {tensor} has seen no token (input {layer.input})")
        width = own.shape[-3 - layer.input_axis]
        if method in _OUTPUTS and statistics.output_width(tensor) != width:
            found.append(
                f"{name}: {tensor} has {width} outputs, its gradients "
                f"{statistics.output_width(tensor)}; write them with --output-gradients"
            )
    return found


def _value_faults(statistics: LazyStatistics) -> list[str]:
    found = []
    fisher = statistics.manifest.kind == "fisher"
    for name in statistics.arrays.tensors:
        array = statistics.arrays.read(name)
        flat = array.reshape(-1)
        if flat.dtype.kind != "f":
            found.append(f"{statistics.file}: {name} is {flat.dtype}, not float32")
            continue
        bad = negative = 0
        for start in range(0, len(flat), _PIECE):
            piece = flat[start : start + _PIECE]
            bad += len(piece) - int(np.count_nonzero(np.isfinite(piece)))
            negative += int(np.count_nonzero(piece < 0)) if fisher else 0
        if bad:
            found.append(
                f"{statistics.file}: {name} holds NaN or infinity ({bad} of "
                f"{len(flat)})"
            )
        if not fisher and array.ndim == 1 and (_diagonal(flat) < 0).any():
            found.append(
                f"{statistics.file}: {name} has a negative diagonal, which no Gram has"
            )
        if negative:
            found.append(
                f"{statistics.file}: {name} is negative ({negative} of "
                f"{len(flat)}), which no Fisher is"
            )
    return found


def _diagonal(flat: np.ndarray) -> np.ndarray:
    """Of a packed upper triangle, row by row; empty where it is none."""
    size = (math.isqrt(8 * len(flat) + 1) - 1) // 2
    if size * (size + 1) // 2 != len(flat):
        return flat[:0]
    rows = np.arange(size)
    return flat[rows * size - rows * (rows - 1) // 2]


def _layer_faults(method: str, found: Mapping[str, LazyStatistics]) -> list[str]:
    """Layers that some files have and others lack, or describe differently."""
    fishers = NEEDED[method] == "fisher"
    held = {
        str(x.file): dict.fromkeys(x.arrays.tensors)
        if fishers
        else {
            name: (layer.bias, layer.input_axis)
            for name, layer in x.manifest.layers.items()
        }
        for x in found.values()
    }
    every = sorted({tensor for tensors in held.values() for tensor in tensors})
    faults = []
    for tensor in every:
        lacking = [file for file, tensors in held.items() if tensor not in tensors]
        if lacking:
            faults.append(
                f"{tensor}: {', '.join(lacking)} has no statistics of it, others have; "
                "write all with the same --layers"
            )
        elif len({tensors[tensor] for tensors in held.values()}) > 1:
            faults.append(f"{tensor}: its bias or input axis differs between files")
    return faults
