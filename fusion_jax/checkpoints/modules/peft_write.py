"""Hugging Face peft directories out: what torch peft loads with the same outputs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.checkpoints.modules.paths import (
    GENERIC,
    kind_of_head,
    layer_number,
    torch_path,
)
from fusion_jax.checkpoints.modules.peft_low_rank import ia3_values, lora_values
from fusion_jax.checkpoints.modules.peft_read import CONFIG, WEIGHTS
from fusion_jax.checkpoints.modules.peft_tensors import (
    LAYERED,
    PROMPT,
    ROWS,
    layered_tensors,
)
from fusion_jax.checkpoints.modules.peft_virtual import (
    prefix_rows,
    prompt_rows,
    virtual_values,
)
from fusion_jax.checkpoints.modules.replaced import TASKS, saved_modules
from fusion_jax.checkpoints.modules.sidecar import write_sidecar, write_sorted
from fusion_jax.checkpoints.tensors import CheckpointError, check_finite, write_file
from fusion_jax.models.names import TABLES
from fusion_jax.peft import Module
from fusion_jax.peft.delta import alpha_of
from fusion_jax.peft.gates import ungated
from fusion_jax.peft.low_rank import own_leaves

KINDS = ("lora", "ia3", "prompt", "prefix")
"""The kinds that peft has."""


def write_peft(
    directory: str | os.PathLike[str],
    module: Module,
    *,
    family: str | None = None,
    bare: bool = False,
    base: str | None = None,
) -> Path:
    """Writes a module as torch peft reads it.

    The scaling is said by lora_alpha and never folded into a factor; a gate, for which
    peft has no word, is. A head, norms and
    biases of the module's own become modules_to_save and bias; a module without a head
    is written without a task, and torch peft loads it on any class of the host.

    Args:
      directory: replaced as a whole when everything is written, else untouched.
      module: of a kind of `KINDS`; a prefix in flat form.
      family: of the host; the module's own without it. '' = paths are torch paths.
      bare: the host is loaded without a head (AutoModel), whose modules have no
        'bert.' before their names.
      base: name of the host in the config; the module's own without it.

    Returns:
      The folder.

    Raises:
      CheckpointError: peft has no such kind, the host's family is not known, or the
        module has what peft cannot say; every fault is listed.
      WriteFailed: the disk is full or the folder not writable.
    """
    target = Path(directory)
    chosen = family if family is not None else module.host.get("family", GENERIC)
    if module.config.kind == "lora":
        module = ungated(module)
    values, tensors, faults = _content(module, chosen, bare)
    if faults:
        raise CheckpointError(
            f"the module cannot be written in peft's form to {target}:\n  "
            + "\n  ".join(faults)
        )
    check_finite(module.params, f"the module to be saved as {target}")
    values["base_model_name_or_path"] = base or module.host.get("name")
    values["inference_mode"] = True
    with atomic.directory(target) as staging:
        write_sorted(staging / CONFIG, values)
        write_file(staging / WEIGHTS, tensors)
        write_sidecar(staging, module.host)
    return target


def _content(
    module: Module, family: str, bare: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """(config, tensors, faults)."""
    kind = module.config.kind
    if kind not in KINDS:
        return {}, {}, [f"peft has no {kind}, only {', '.join(KINDS)}"]
    if module.config.init == "pissa":
        return (
            {},
            {},
            [
                "PiSSA changed its host at the start: make it a plain low-rank update "
                "of the original host first (peft.portable)"
            ],
        )
    if family not in (GENERIC, *TABLES):
        return {}, {}, [f"family {family!r} is not one of {', '.join(TABLES)}"]
    if family == GENERIC and any(
        n.startswith("encoder/layer_") for n in _names(module)
    ):
        return (
            {},
            {},
            [
                "its layers have our names, and the host's family is not known: name "
                f"it, one of {', '.join(TABLES)}"
            ],
        )
    own, rest = own_leaves(module)
    head = kind_of_head(family, rest)
    if not head and any(name.startswith("head/") for name in rest):
        return {}, {}, [f"its head is none that a {family} model has"]
    layered = kind in ("lora", "ia3")
    try:
        paths = {n.rsplit("/", 2)[0]: "" for n in own} if layered else {}
        layers = {path: torch_path(family, path, kind=head)[0] for path in paths}
        saved, bias, faults = saved_modules(family, list(rest), list(layers), head)
        if layered:
            values = _layered_values(module, own, layers, family)
            before = LAYERED
        else:
            values, rows = _virtual(module, own)
            before = PROMPT
        leaves = {**own, **rest} if layered else rest
        tensors = layered_tensors(leaves, family, prefixed=not bare, before=before)
    except KeyError as error:
        return {}, {}, [f"{error.args[0]}: a {family} model has no such layer"]
    except ValueError as error:
        return {}, {}, [str(error)]
    if not layered:
        tensors[ROWS] = np.ascontiguousarray(rows)
    if bias != "none" and kind != "lora":
        faults.append(f"peft's {kind} has no place for biases of the host")
    values["modules_to_save"] = saved or None
    if kind == "lora":
        values["bias"] = bias
    values["task_type"] = TASKS.get(
        head or "", None if layered else "FEATURE_EXTRACTION"
    )
    return values, tensors, faults


def _layered_values(
    module: Module,
    own: Mapping[str, np.ndarray],
    layers: Mapping[str, str],
    family: str,
) -> dict[str, Any]:
    num_layers = int(module.host.get("num_layers") or 0)
    if not num_layers and family != GENERIC:
        numbers = [layer_number(path) for path in layers]
        num_layers = max((n for n in numbers if n is not None), default=-1) + 1
    if module.config.kind == "ia3":
        inputs = [path for path in layers if f"{path}/ia3/input_scale" in own]
        return ia3_values(layers, inputs, family, num_layers)
    ranks = {path: int(own[f"{path}/lora/a"].shape[1]) for path in layers}
    alphas = {path: alpha_of(module.config, path) for path in layers}
    return lora_values(module.config, layers, ranks, alphas, family, num_layers)


def _virtual(
    module: Module, own: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    kind = module.config.kind
    about = module.host
    num_layers = int(about.get("num_layers") or 0)
    num_heads = int(about.get("num_heads") or 0)
    if kind == "prefix":
        if not module.config.shift_positions:
            raise ValueError(
                "torch peft gives the text the positions after the prefix, and the "
                "module was trained with those before: only a prefix that was trained "
                "with shift_positions says the same there"
            )
        if not num_layers or not num_heads:
            raise ValueError(
                "a prefix in peft's form says how many layers and heads the host has, "
                "and the module does not know: give the host (--host)"
            )
        rows = prefix_rows(own, num_layers)
        width = rows.shape[1] // (2 * num_layers)
    else:
        rows = prompt_rows(own)
        width = rows.shape[1]
    # A prompt is rows and nothing else: torch peft reads no more of its config.
    values = virtual_values(kind, len(rows), width, num_layers or 1, num_heads or 1)
    return values, rows


def _names(module: Module) -> list[str]:
    return list(trees.flatten(module.params))
