"""Tensors of AdapterHub's bottleneck adapters against our leaves."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.checkpoints.modules.adapterhub_config import factor_of
from fusion_jax.checkpoints.modules.paths import layer_number
from fusion_jax.models.names import TABLES

# Family -> torch paths below the base model of the two places of a layer.
PLACES: Mapping[str, tuple[str, str]] = {
    "bert": ("encoder.layer.{i}.attention.output", "encoder.layer.{i}.output"),
    "roberta": ("encoder.layer.{i}.attention.output", "encoder.layer.{i}.output"),
    "distilbert": (
        "transformer.layer.{i}.attention_adapters",
        "transformer.layer.{i}.output_adapters",
    ),
    "gpt2": ("h.{i}.attention_adapters", "h.{i}.output_adapters"),
}
PRE_NORM = ("gpt2",)
"""Families whose norms come first."""

_PARTS = (
    ("adapter_down.0.weight", "down/kernel"),
    ("adapter_down.0.bias", "down/bias"),
    ("adapter_up.weight", "up/kernel"),
    ("adapter_up.bias", "up/bias"),
)
_LEGACY = re.compile(r"(attention|layer)_text_(task|lang)_adapters")


def tensor_name(family: str, path: str, own: str, name: str) -> str:
    """What a leaf is called there.

    Args:
      family: of `PLACES`.
      path: of the layer.
      own: such as 'down/kernel'.
      name: of the adapter.
    """
    attention, output = PLACES[family]
    place = attention if path.endswith("attention/output") else output
    part = next(theirs for theirs, ours in _PARTS if ours == own)
    module = place.format(i=layer_number(path))
    return f"{TABLES[family].BASE}.{module}.adapters.{name}.{part}"


def read_leaves(
    tensors: Mapping[str, np.ndarray], family: str, own: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Our leaves of named tensors.

    Args:
      tensors: of the file.
      family: of `PLACES`.
      own: 'config' of adapter_config.json.

    Returns:
      (leaves, faults).
    """
    before = bool(own.get("original_ln_before")) and not own.get("is_parallel")
    ends = ("attention/output", "mlp/norm" if before else "mlp/down")
    forms = [
        re.compile(
            rf"({re.escape(TABLES[family].BASE)}\.)?"
            + re.escape(place).replace(re.escape("{i}"), r"(?P<i>\d+)")
            + r"\.adapters\.[^.]+\.(?P<part>.+)"
        )
        for place in PLACES[family]
    ]
    parts, leaves, faults = dict(_PARTS), {}, []
    for name, array in sorted(tensors.items()):
        modern = _LEGACY.sub("adapters", name)
        for form, end in zip(forms, ends, strict=True):
            found = form.fullmatch(modern)
            if found and found["part"] in parts:
                part = parts[found["part"]]
                value = array.T if part.endswith("kernel") else array
                leaf = f"encoder/layer_{found['i']}/{end}/adapter/{part}"
                leaves[leaf] = np.ascontiguousarray(value)
                break
        else:
            faults.append(f"{name} is unexpected")
    return leaves, faults + _missing(leaves, ends, own)


def _missing(
    leaves: Mapping[str, np.ndarray], ends: Sequence[str], own: Mapping[str, Any]
) -> list[str]:
    wanted_ends = [
        end
        for end, key in zip(ends, ("mh_adapter", "output_adapter"), strict=True)
        if own.get(key)
    ]
    numbers = [n for n in map(layer_number, leaves) if n is not None]
    left_out = set(own.get("leave_out") or ())
    wanted = {
        f"encoder/layer_{i}/{end}/adapter/{part}"
        for i in set(range(max(numbers, default=-1) + 1)) - left_out
        for end in wanted_ends
        for _, part in _PARTS
    }
    if not leaves:
        return ["no tensor of an adapter is there"]
    return [f"{name} is missing" for name in sorted(wanted - leaves.keys())] + [
        f"{name} is unexpected: the config has no adapter there"
        for name in sorted(leaves.keys() - wanted)
    ]


def width_faults(
    leaves: Mapping[str, np.ndarray], own: Mapping[str, Any], width: Any
) -> list[str]:
    """Leaves whose shapes are not those of hidden_size and reduction_factor."""
    faults = []
    for name, leaf in leaves.items():
        factor = factor_of(own, layer_number(name) or 0)
        d = width if isinstance(width, int) else leaf.shape[0]
        if not factor:
            return ["reduction_factor has no value for some layer, and no 'default'"]
        m = max(1, int(d // factor))
        shapes = {"down/kernel": (d, m), "down/bias": (m,)}
        shapes |= {"up/kernel": (m, d), "up/bias": (d,)}
        wanted = shapes[name.partition("/adapter/")[2]]
        if isinstance(width, int) and leaf.shape != wanted:
            faults.append(f"{name}: shape {leaf.shape}, the config says {wanted}")
    return faults
