"""Hugging Face peft directories in: a config and its tensors, all or nothing.

torch peft ignores tensors that it does not know, warns of missing ones and takes any
host of equal shapes. Here a folder that is not what its config says is refused.
"""

import dataclasses
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.modules.folder_tensors import tensors_in
from fusion_jax.checkpoints.modules.paths import (
    GENERIC,
    families_of,
    layer_number,
)
from fusion_jax.checkpoints.modules.peft_keys import key_faults
from fusion_jax.checkpoints.modules.peft_low_rank import Read, read_ia3, read_lora
from fusion_jax.checkpoints.modules.peft_tensors import (
    ROWS,
    Tensor,
    modules_of,
    understood,
)
from fusion_jax.checkpoints.modules.peft_values import value_faults
from fusion_jax.checkpoints.modules.peft_virtual import read_prefix, read_prompt
from fusion_jax.checkpoints.modules.replaced import unexplained
from fusion_jax.checkpoints.modules.sidecar import read_json, read_sidecar
from fusion_jax.checkpoints.tensors import CheckpointError, check_finite
from fusion_jax.models.names import TABLES
from fusion_jax.peft import Module, PeftConfig

CONFIG, WEIGHTS, PICKLE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_REMEDY = f"load it with torch peft where you trust it, and save it again as {WEIGHTS}"
_LAYERED = {"LORA": read_lora, "IA3": read_ia3}
_VIRTUAL = {"PROMPT_TUNING": read_prompt, "PREFIX_TUNING": read_prefix}
_FLOATS = ("float32", "float16", "bfloat16", "float64")


def read_peft(
    directory: Path, *, family: str | None = None, ignore: Collection[str] = ()
) -> Module:
    """A module of a peft directory.

    Args:
      directory: holds adapter_config.json and adapter_model.safetensors.
      family: of the host, where names leave it open (bare BERT and RoBERTa) or are of
        no table ('' = torch paths as they are); seen from the names without it.
      ignore: keys of the config to pass over.

    Returns:
      The module; leaves in the dtype of the file.

    Raises:
      CheckpointError: a pickle, a file that is missing or damaged, a key that changes
        the meaning or has a value of another type, tensors that are unexpected,
        missing, of another rank or shape, or of no layer of the family; every fault is
        listed.
    """
    values = read_json(directory / CONFIG)
    module = module_of_tensors(
        values,
        tensors_in(directory, WEIGHTS, PICKLE, _REMEDY),
        about=read_sidecar(directory),
        family=family,
        ignore=ignore,
        source=str(directory),
    )
    check_finite(module.params, str(directory))
    return module


def module_of_tensors(
    values: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    about: Mapping[str, Any] | None = None,
    family: str | None = None,
    ignore: Collection[str] = (),
    source: str = "the module",
) -> Module:
    """`read_peft` of a config's values and named arrays.

    Args:
      values: of adapter_config.json.
      tensors: arrays as peft names them, or loralib or T-Few.
      about: what is known of the host.
      family: see `read_peft`.
      ignore: see `read_peft`.
      source: what to call them.

    Returns:
      The module.

    Raises:
      CheckpointError: see `read_peft`.
    """
    about = dict(about or {})
    faults, notes = key_faults(values, ignore)
    mistyped = value_faults(values)
    faults += mistyped
    # Nothing else can be read then.
    if mistyped or str(values.get("peft_type")) not in (*_LAYERED, *_VIRTUAL):
        raise _refused(source, faults)
    for note in notes:
        warnings.warn(f"{source}: {note}", stacklevel=3)
    chosen, known = _family(family or about.get("family"), tensors, faults, family)
    rows = tensors.get(ROWS)
    read, wrong = understood({n: x for n, x in tensors.items() if n != ROWS}, chosen)
    faults += wrong + _dtype_faults(tensors)
    numbers = [layer_number(one.leaf) for one in read]
    counted = max((n for n in numbers if n is not None), default=-1) + 1
    num_layers = about.get("num_layers") or values.get("num_layers") or counted
    leaves = {one.leaf: one.value for one in read}
    config, own, wrong = _config(values, read, rows, chosen, num_layers)
    faults += wrong
    layers = [one.leaf.rsplit("/", 2)[0] for one in read if one.part]
    saved = values.get("modules_to_save") or ()
    faults += unexplained(read, saved, str(values.get("bias") or "none"), layers)
    if faults or config is None:
        raise _refused(source, faults)
    config = _with_replaced(config, read)
    found = {"num_layers": num_layers} if chosen != GENERIC and num_layers else {}
    if known:
        found["family"] = chosen
    width = _width(values, leaves)
    if width:
        found["hidden_size"] = width
    if values.get("base_model_name_or_path"):
        found["name"] = str(values["base_model_name_or_path"])
    return Module(config, trees.unflatten({**leaves, **own}), {**found, **about})


def _family(
    told: str | None,
    tensors: Mapping[str, np.ndarray],
    faults: list[str],
    asked: str | None,
) -> tuple[str, bool]:
    """(family whose names are read, whether that is known and not a guess)."""
    if asked == GENERIC:
        return GENERIC, False
    if told:
        if told in TABLES:
            return told, True
        faults.append(f"family {told!r} is not one of {', '.join(TABLES)}")
    adapted, own = modules_of(list(tensors))
    if not adapted and not own:  # of a prompt or a prefix the names tell nothing
        return next(iter(TABLES)), False
    # A tensor that nobody knows shall not make the others unknown.
    found = families_of([*adapted, *own]) or families_of(adapted)
    return (found[0], len(found) == 1) if found else (GENERIC, False)


def _config(
    values: Mapping[str, Any],
    read: Sequence[Tensor],
    rows: np.ndarray | None,
    family: str,
    num_layers: int,
) -> tuple[PeftConfig | None, dict[str, np.ndarray], list[str]]:
    kind = str(values.get("peft_type"))
    if kind in _LAYERED:
        found: Read = _LAYERED[kind](values, read, family, num_layers)
        extra = [f"{ROWS} is unexpected"] if rows is not None else []
        return found[0], {}, found[1] + extra
    extra = [f"{one.module}.{one.part} is unexpected" for one in read if one.part]
    if rows is None:
        return None, {}, [f"{ROWS} is missing", *extra]
    config, leaves, faults = _VIRTUAL[kind](values, rows)
    if kind == "PREFIX_TUNING" and family == "gpt2":
        faults.append(
            "GPT-2 computes query, key and value in one product, which has no place "
            "here for keys and values alone"
        )
    return config, leaves, faults + extra


def _dtype_faults(tensors: Mapping[str, np.ndarray]) -> list[str]:
    return [
        f"{name} is {array.dtype}; {', '.join(_FLOATS)} are read"
        for name, array in tensors.items()
        if str(array.dtype) not in _FLOATS
    ]


def _with_replaced(config: PeftConfig, read: Sequence[Tensor]) -> PeftConfig:
    return dataclasses.replace(
        config, replaces=tuple(re.escape(one.leaf) for one in read if not one.part)
    )


def _width(values: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> int | None:
    """D, where a leaf or the config says it."""
    if isinstance(values.get("token_dim"), int):
        return values["token_dim"]
    for name, leaf in leaves.items():
        if re.search(r"attention/(query|key|value|qkv)/lora/a$", name):
            return int(leaf.shape[0])
        if re.search(r"attention/(query|key|value)/ia3/scale$", name):
            return int(leaf.shape[0])
    return None


def _refused(source: str, faults: Sequence[str]) -> CheckpointError:
    listed = "\n  ".join(faults[:40])
    more = f"\n  and {len(faults) - 40} more" if len(faults) > 40 else ""
    return CheckpointError(
        f"{source}: {len(faults)} faults against its {CONFIG}:\n  {listed}{more}\n"
        "The tensors and the config are of different modules, a file is damaged, or "
        "the module is of a kind or a host that is not known here."
    )
