"""LoRA and (IA)^3 between adapter_config.json and our configs, both ways."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.checkpoints.modules.paths import GENERIC, layer_number, layer_path
from fusion_jax.checkpoints.modules.peft_tensors import Tensor
from fusion_jax.checkpoints.modules.targets import (
    means,
    meant,
    named,
    patterns_of,
    short_targets,
    value_of,
)
from fusion_jax.peft.config import PeftConfig

_INITS = {True: "default", False: "random", "gaussian": "gaussian"}
Read = tuple[PeftConfig | None, list[str]]
"""A config and what is wrong; None where there is none."""


def read_lora(
    values: Mapping[str, Any], tensors: Sequence[Tensor], family: str, num_layers: int
) -> Read:
    """The config of a LoRA, held against its tensors.

    Args:
      values: of adapter_config.json.
      tensors: understood.
      family: of the host.
      num_layers: of the host.
    """
    layers = _by_layer(tensors)
    faults = _coverage(values, layers, family, num_layers)
    rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)
    ranks, alphas = {}, {}
    for path, (module, parts) in layers.items():
        ranks[path] = value_of(values.get("rank_pattern"), module, rank)
        alphas[path] = value_of(values.get("alpha_pattern"), module, alpha)
        wanted = {"a", "b", *(["magnitude"] if values.get("use_dora") else [])}
        faults += _part_faults(module, parts, wanted, ranks[path])
    if faults:
        return None, faults
    init = values.get("init_lora_weights", True)
    return made(
        kind="lora",
        targets=patterns_of(layers, num_layers),
        rank=rank,
        alpha=float(alpha),
        rank_pattern=_others(ranks, rank),
        alpha_pattern=_others(alphas, alpha),
        use_rslora=bool(values.get("use_rslora", False)),
        use_dora=bool(values.get("use_dora", False)),
        dropout=float(values.get("lora_dropout") or 0.0),
        init=_INITS.get(init, "default"),
    )


def read_ia3(
    values: Mapping[str, Any], tensors: Sequence[Tensor], family: str, num_layers: int
) -> Read:
    """The config of an (IA)^3; see `read_lora`."""
    layers = _by_layer(tensors)
    faults = _coverage(values, layers, family, num_layers)
    inputs = []
    for path, (module, parts) in layers.items():
        wanted = named(values.get("feedforward_modules"), module)
        if wanted != ("input_scale" in parts):
            faults.append(
                f"{module}: its vector scales the {'output' if wanted else 'input'}, "
                "feedforward_modules says the other"
            )
        if wanted:
            inputs.append(path)
    if faults:
        return None, faults
    return made(
        kind="ia3",
        targets=patterns_of(layers, num_layers),
        # None is said by what matches nothing: an empty list means the family's own.
        feedforward=patterns_of(inputs, num_layers) or (r"(?!)",),
    )


def lora_values(
    config: PeftConfig,
    layers: Mapping[str, str],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    family: str,
    num_layers: int,
) -> dict[str, Any]:
    """The keys of a LoRA's adapter_config.json.

    Args:
      config: of the module.
      layers: our path of each layer -> torch path without the base model's name.
      ranks: our path -> rank.
      alphas: our path -> alpha, so that the scaling is what peft makes of it.
      family: of the host.
      num_layers: of the host; 0 where it is not known.
    """
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {layers[p]: r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {
            layers[p]: _whole(a) for p, a in alphas.items() if a != alpha
        },
        "target_modules": short_targets(family, layers.values(), num_layers),
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "lora_dropout": config.dropout,
        "init_lora_weights": {"gaussian": "gaussian", "random": False}.get(
            config.init, True
        ),
        "fan_in_fan_out": family == "gpt2",
    }


def ia3_values(
    layers: Mapping[str, str], inputs: Sequence[str], family: str, num_layers: int
) -> dict[str, Any]:
    """The keys of an (IA)^3's adapter_config.json; see `lora_values`.

    Args:
      layers: see `lora_values`.
      inputs: our paths of the layers whose input is scaled.
      family: see `lora_values`.
      num_layers: see `lora_values`.
    """
    outer = [layers[path] for path in layers if path not in inputs]
    inner = short_targets(family, [layers[path] for path in inputs], num_layers)
    return {
        "peft_type": "IA3",
        # A feed-forward entry has to stand in both lists under one name.
        "target_modules": [*short_targets(family, outer, num_layers), *inner],
        "feedforward_modules": inner,
        "fan_in_fan_out": family == "gpt2",
    }


def _by_layer(
    tensors: Sequence[Tensor],
) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """Our layer path -> (torch module, own name of each leaf -> array)."""
    found: dict[str, tuple[str, dict[str, np.ndarray]]] = {}
    for tensor in tensors:
        if tensor.part:
            path, _, own = tensor.leaf.rpartition("/")
            path = path.rpartition("/")[0]
            found.setdefault(path, (tensor.module, {}))[1][own] = tensor.value
    return found


def _coverage(
    values: Mapping[str, Any],
    layers: Mapping[str, tuple[str, Any]],
    family: str,
    num_layers: int,
) -> list[str]:
    """Modules that the config names and the file lacks, or the other way round."""
    if not layers:
        return ["no tensor of an adapter is there"]
    faults = []
    for module, _ in layers.values():
        place = _place(family, module)
        if not means(values, module, place):
            faults.append(f"{module} is unexpected: target_modules does not name it")
    missing = sorted(meant(values, family, num_layers) - layers.keys())
    faults += [f"{path} is missing: target_modules names it" for path in missing]
    beyond = {n for n in map(layer_number, layers) if n is not None and n >= num_layers}
    if beyond:
        faults.append(
            f"layer {max(beyond)} is there, and the host has {num_layers} layers"
        )
    return faults


def _place(family: str, module: str) -> Any:
    found = None if family == GENERIC else layer_path(family, module)
    return found[1] if found else None


def _part_faults(
    module: str, parts: Mapping[str, np.ndarray], wanted: set[str], rank: int
) -> list[str]:
    names = {"a": "lora_A", "b": "lora_B", "magnitude": "lora_magnitude_vector"}
    faults = [f"{module}.{names[p]} is missing" for p in sorted(wanted - parts.keys())]
    faults += [
        f"{module}.{names.get(p, p)} is unexpected"
        + (" (use_dora is not set)" if p == "magnitude" else "")
        for p in sorted(parts.keys() - wanted)
    ]
    for part, axis in (("a", 1), ("b", 0)):
        if part in parts and parts[part].shape[axis] != rank:
            faults.append(
                f"{module}.{names[part]} has rank {parts[part].shape[axis]}, "
                f"adapter_config.json says {rank}"
            )
    if "magnitude" in parts and "b" in parts:
        columns = parts["b"].shape[1]
        if parts["magnitude"].shape != (columns,):
            faults.append(
                f"{module}.lora_magnitude_vector has shape {parts['magnitude'].shape}, "
                f"lora_B says ({columns},)"
            )
    return faults


def _others(found: Mapping[str, Any], usual: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((re.escape(p), value) for p, value in found.items() if value != usual)


def made(**fields: Any) -> Read:
    """A config, or what is wrong with its fields."""
    try:
        return PeftConfig(**fields), []
    except (ValueError, TypeError) as error:
        return None, [str(error)]


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number
