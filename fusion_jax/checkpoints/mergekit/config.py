"""What a mergekit YAML file says, every key checked, before any model is opened."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion_jax.checkpoints.mergekit.methods import METHODS
from fusion_jax.checkpoints.mergekit.parameters import Scope, read_scope
from fusion_jax.checkpoints.mergekit.reference import read_model
from fusion_jax.checkpoints.mergekit.tokenizer import read_tokenizer
from fusion_jax.checkpoints.mergekit.yaml import Path, Reading, read_yaml

DTYPES = ("float16", "bfloat16", "float32", "float64")

_TOP = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)
_OTHERS = {
    "experts": "a mergekit-moe file",
    "gate_mode": "a mergekit-moe file",
    "genome": "a mergekit-evolve file",
}


@dataclass(frozen=True)
class Input:
    """A model of a slice.

    Attributes:
      model: as the file writes it.
      parameters: its own.
      layers: [from, to) of its blocks; None for all.
      path: where it stands in the file.
    """

    model: str
    parameters: Scope
    layers: tuple[int, int] | None
    path: Path


@dataclass(frozen=True)
class Slice:
    """Models merged over one range of blocks.

    Attributes:
      inputs: in the order of the file.
      base: of this slice; None for the file's.
      parameters: of all its inputs.
      path: where it stands in the file.
    """

    inputs: tuple[Input, ...]
    base: str | None
    parameters: Scope
    path: Path


@dataclass(frozen=True)
class Module:
    """A part of the models that is merged by itself.

    Attributes:
      slices: stacked in this order; one for `models`.
      stacked: whether the file wrote `slices`.
      parameters: of all its slices.
    """

    slices: tuple[Slice, ...]
    stacked: bool
    parameters: Scope


@dataclass(frozen=True)
class MergekitConfig:
    """A file of mergekit's.

    Attributes:
      merge_method: of `METHODS`.
      modules: by name; one of the name '' where the file has none.
      base: as the file writes it.
      parameters: the file's.
      dtype: on loading; None leaves it.
      out_dtype: on saving; None leaves it.
      tokenizer: None copies the donor's.
      chat_template: None leaves it.
    """

    merge_method: str
    modules: Mapping[str, Module]
    base: str | None = None
    parameters: Scope = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: Mapping[str, Any] | None = None
    chat_template: str | None = None


def read_config(text: str, reading: Reading) -> MergekitConfig:
    """Reads and checks a YAML text.

    Args:
      text: of the file.
      reading: receives notes, and the lines for later faults.

    Raises:
      MergekitError: lists every fault with its line.
    """
    data = read_yaml(text, reading)
    for key, kind in _OTHERS.items():
        if key in data:
            reading.fault((key,), f"this is {kind}, which is not supported")
            reading.check()
    reading.check_keys(data, _TOP, ())
    if data.get("name") is not None:
        reading.note(("name",), "counts in files of several documents only (ignored)")
    config = MergekitConfig(
        merge_method=_method(data, reading),
        modules=_modules(data, reading),
        base=read_model(data.get("base_model"), ("base_model",), reading),
        parameters=read_scope(data.get("parameters"), ("parameters",), reading),
        dtype=_dtype(data, "dtype", reading),
        out_dtype=_dtype(data, "out_dtype", reading),
        tokenizer=read_tokenizer(data, reading),
        chat_template=_text(data, "chat_template", reading),
    )
    reading.check()
    return config


def _modules(data: Mapping[str, Any], reading: Reading) -> dict[str, Module]:
    given = [
        key for key in ("models", "slices", "modules") if data.get(key) is not None
    ]
    if len(given) != 1:
        reading.fault(
            (given[1],) if given[1:] else (),
            "exactly one of models, slices and modules has to be given, here: "
            f"{', '.join(given) or 'none'}",
        )
        return {}
    if given != ["modules"]:
        return {"": _module(data, (), reading)}
    parts = data["modules"]
    if not isinstance(parts, dict) or not parts:
        reading.fault(("modules",), "has to be a mapping, name -> models or slices")
        return {}
    modules = {}
    for name, part in parts.items():
        path: Path = ("modules", name)
        if not isinstance(part, dict):
            reading.fault(path, "has to be a mapping with models or slices")
            continue
        reading.check_keys(part, ("models", "slices", "parameters"), path)
        if (part.get("models") is None) == (part.get("slices") is None):
            reading.fault(path, "exactly one of models and slices has to be given")
            continue
        modules[name] = _module(part, path, reading)
    return modules


def _module(data: Mapping[str, Any], path: Path, reading: Reading) -> Module:
    # The scope of the file is read apart.
    scope = (
        read_scope(data.get("parameters"), (*path, "parameters"), reading)
        if path
        else {}
    )
    if data.get("models") is not None:
        here = (*path, "models")
        inputs = _inputs(data["models"], ("model", "parameters"), here, reading)
        return Module((Slice(inputs, None, {}, here),), False, scope)
    here = (*path, "slices")
    slices = []
    for place, part in enumerate(_list(data["slices"], here, reading)):
        at = (*here, place)
        known = ("sources", "base_model", "parameters", "residual_weight")
        reading.check_keys(part, known, at)
        if part.get("residual_weight") is not None:
            reading.note((*at, "residual_weight"), "does nothing in mergekit (ignored)")
        known = ("model", "layer_range", "parameters")
        inputs = _inputs(part.get("sources"), known, (*at, "sources"), reading)
        base = read_model(part.get("base_model"), (*at, "base_model"), reading)
        own = read_scope(part.get("parameters"), (*at, "parameters"), reading)
        slices.append(Slice(inputs, base, own, at))
    return Module(tuple(slices), True, scope)


def _inputs(
    data: Any, known: tuple[str, ...], path: Path, reading: Reading
) -> tuple[Input, ...]:
    inputs = []
    for place, part in enumerate(_list(data, path, reading)):
        at = (*path, place)
        reading.check_keys(part, known, at)
        if part.get("model") is None:
            reading.fault(at, "has no model")
            continue
        scope = read_scope(part.get("parameters"), (*at, "parameters"), reading)
        model = read_model(part["model"], (*at, "model"), reading)
        layers = None
        if "layer_range" in known:
            layers = _range(part.get("layer_range"), (*at, "layer_range"), reading)
        if model is not None:
            inputs.append(Input(model, scope, layers, at))
    return tuple(inputs)


def _range(data: Any, path: Path, reading: Reading) -> tuple[int, int] | None:
    if data is None:
        reading.fault(path[:-1], "has no layer_range: [from, to)")
        return None
    whole = isinstance(data, list) and [type(x) for x in data] == [int, int]
    if not whole or not 0 <= data[0] <= data[1]:
        reading.fault(path, f"{data!r} is not [from, to] with 0 <= from <= to")
        return None
    return data[0], data[1]


def _list(data: Any, path: Path, reading: Reading) -> list[dict[str, Any]]:
    if not isinstance(data, list) or not data:
        reading.fault(path, "has to be a list with at least one entry")
        return []
    for place, part in enumerate(data):
        if not isinstance(part, dict):
            reading.fault((*path, place), f"{part!r} has to be a mapping")
    return [part if isinstance(part, dict) else {} for part in data]


def _method(data: Mapping[str, Any], reading: Reading) -> str:
    name = data.get("merge_method")
    if name in METHODS:
        return str(name)
    near = difflib.get_close_matches(str(name), METHODS, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    said = "is missing" if name is None else f"'{name}' is not implemented"
    reading.fault(("merge_method",), f"{said}; {hint}known: {', '.join(METHODS)}")
    return "linear"


def _dtype(data: Mapping[str, Any], key: str, reading: Reading) -> str | None:
    name = data.get(key)
    if name is None or str(name).removeprefix("torch.") in DTYPES:
        return None if name is None else str(name).removeprefix("torch.")
    reading.fault((key,), f"'{name}' is not one of {', '.join(DTYPES)}")
    return None


def _text(data: Mapping[str, Any], key: str, reading: Reading) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        reading.fault((key,), f"{value!r} is no text")
        return None
    return value
