"""The value of a parameter at a tensor: scopes, filters, gradients over depth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fusion_jax.checkpoints.mergekit.methods import NAMES, Parameter
from fusion_jax.checkpoints.mergekit.yaml import Path, Reading

Scalar = bool | int | float


class Choice(NamedTuple):
    """One line of a setting.

    Attributes:
      filter: a substring of the tensors' names; None or '*' for all.
      values: one, or a gradient over depth.
    """

    filter: str | None
    values: tuple[Scalar, ...]


Setting = tuple[Choice, ...]
"""Of one parameter in one scope: the first choice whose filter matches counts."""

Scope = Mapping[str, Setting]
"""The `parameters` of one model, slice, module or file."""


def read_scope(data: Any, path: Path, reading: Reading) -> Scope:
    """Reads a `parameters` mapping.

    Args:
      data: from YAML; None is empty.
      path: of the mapping.
      reading: receives faults.
    """
    if data is None:
        return {}
    if not isinstance(data, dict):
        reading.fault(path, "has to be a mapping of parameters")
        return {}
    scope: dict[str, Setting] = {}
    for name, value in data.items():
        if name not in NAMES:
            reading.unknown((*path, name), NAMES)
        else:
            setting = _setting(value, NAMES[name], (*path, name), reading)
            if setting:
                scope[name] = setting
    return scope


def _setting(data: Any, kind: type, path: Path, reading: Reading) -> Setting:
    if data is None or data == []:
        return ()
    entries = data if isinstance(data, list) else [data]
    filtered = [isinstance(entry, dict) for entry in entries]
    if not any(filtered):
        return (Choice(None, _values(data, kind, path, reading)),)
    if not all(filtered):
        reading.fault(
            path,
            "bare values stand among filters; write the last one as {value: ...}",
        )
        return ()
    choices = []
    for place, entry in enumerate(entries):
        inner = (*path, place) if isinstance(data, list) else path
        reading.check_keys(entry, ("filter", "value"), inner)
        if entry.get("value") in (None, []):
            reading.fault(inner, "has no value")
            continue
        mark = entry.get("filter")
        values = _values(entry["value"], kind, inner, reading)
        choices.append(Choice(None if mark is None else str(mark), values))
    return tuple(choices)


def _values(data: Any, kind: type, path: Path, reading: Reading) -> tuple[Scalar, ...]:
    values = []
    for entry in data if isinstance(data, list) else [data]:
        try:
            values.append(_scalar(entry, kind))
        except (ValueError, TypeError):
            wanted = "true or false" if kind is bool else "a number"
            reading.fault(path, f"{entry!r} is not {wanted}")
    # A fault was noted; a stand-in lets the rest of the file be looked through.
    return tuple(values) or (kind(),)


def _scalar(entry: Any, kind: type) -> Scalar:
    if kind is bool:
        words = {"true": True, "false": False, "1": True, "0": False}
        known = words.get(str(entry).lower())
        if known is None:
            raise ValueError(entry)
        return known
    if isinstance(entry, bool):
        raise TypeError(entry)
    number = float(entry)  # YAML 1.1 reads 3e-1 as a string
    if number != number or number in (float("inf"), -float("inf")):
        raise ValueError(entry)
    if kind is int:
        if number != int(number):
            raise ValueError(entry)
        return int(number)
    return number


def look_up(
    name: str, scopes: Sequence[Scope], tensor: str, depth: float
) -> Scalar | None:
    """The value of a parameter at one tensor.

    Args:
      name: of the parameter.
      scopes: from the inside out; the first that yields a value counts.
      tensor: name that filters are held against.
      depth: t in [0, 1], of the tensor's layer in its slice.

    Returns:
      The value, or None where no scope yields one.
    """
    for scope in scopes:
        for choice in scope.get(name, ()):
            if choice.filter in (None, "*") or str(choice.filter) in tensor:
                return at_depth(choice.values, depth)
    return None


def at_depth(values: Sequence[Scalar], depth: float) -> Scalar:
    """Linear between the values of a gradient; flags step.

    x = t (n - 1), i = floor(x):  (1 - (x - i)) v_i + (x - i) v_{i+1}

    Args:
      values: n of them.
      depth: t in [0, 1].
    """
    place = depth * (len(values) - 1)
    below = int(place)
    if isinstance(values[below], bool) or below == place:
        return values[below]
    share = place - below
    return (1 - share) * values[below] + share * values[below + 1]


def value_of(
    name: str, parameter: Parameter, scopes: Sequence[Scope], tensor: str, depth: float
) -> Scalar | None:
    """`look_up`, or the method's default; None where a required one is missing."""
    found = look_up(name, scopes, tensor, depth)
    return parameter.default if found is None else found
