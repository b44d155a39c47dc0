"""Which modules a peft config means: its rules of names, and how to write ours by them.

`target_modules` is a list of names (a module's, or its end from a '.' on), one regular
expression of whole paths, or 'all-linear'.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusion_jax.checkpoints.modules.paths import Place, layer_number, places

ALL_LINEAR = "all-linear"
_LAYER_NUMBER = re.compile(r".*?\.[^.]*\.(?P<i>\d+)\.")


def means(values: Mapping[str, Any], module: str, place: Place | None) -> bool:
    """Whether a config adapts this module.

    Args:
      values: of adapter_config.json.
      module: torch path.
      place: what the family's table says of it.
    """
    kept = values.get("modules_to_save") or ()
    if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in kept):
        return False
    if named(values.get("exclude_modules"), module):
        return False
    targets = values.get("target_modules")
    if targets == ALL_LINEAR:
        linear = place is None or place.kind in ("linear", "conv1d")
        return linear and not (place is not None and place.head)
    if not named(targets, module):
        return False
    return isinstance(targets, str) or _in_layers(values, module)


def named(pattern: str | Sequence[str] | None, module: str) -> bool:
    """Whether a list of names or an expression means a module."""
    if not pattern:
        return False
    if isinstance(pattern, str):
        return re.fullmatch(pattern, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in pattern)


def value_of(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first key of rank_pattern or alpha_pattern that means it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def meant(values: Mapping[str, Any], family: str, num_layers: int) -> set[str]:
    """Our paths of all layers below the head that a config adapts in a family."""
    found = set()
    for place in places(family):
        if place.head or place.kind == "norm" or place.torch == "pooler.dense":
            continue  # a pooler may be there or not
        for i in range(num_layers) if "{i}" in place.torch else (0,):
            if means(values, place.torch.format(i=i), place):
                found.add(place.ours.format(i=i))
    return found


def short_targets(family: str, modules: Iterable[str], num_layers: int) -> list[str]:
    """A list for `target_modules` that means these modules and no other.

    Args:
      family: of the table, or generic.
      modules: torch paths without the base model's name.
      num_layers: of the host; 0 where it is not known.

    Returns:
      Ends of paths where all layers have the module, else whole paths.
    """
    modules = sorted(set(modules))
    whole, rest = [], set(modules)
    for place in places(family) if num_layers else ():
        layers = range(num_layers) if "{i}" in place.torch else (0,)
        own = {place.torch.format(i=i) for i in layers}
        end = _own_end(family, place)
        if end and own <= rest:
            whole.append(end)
            rest -= own
    return sorted(whole) + sorted(rest)


def patterns_of(paths: Iterable[str], num_layers: int) -> tuple[str, ...]:
    """Our targets that mean these layer paths: one pattern for what all layers have."""
    numbers: dict[str, set[int]] = defaultdict(set)
    found: list[str] = []
    for path in paths:
        number = layer_number(path)
        if number is None:
            found.append(re.escape(path))
        else:
            numbers[path.replace(f"layer_{number}/", "layer_*/", 1)].add(number)
    for template, have in numbers.items():
        before, after = template.split("layer_*/", 1)
        if have == set(range(num_layers)):
            found.append(rf"{re.escape(before)}layer_\d+/{re.escape(after)}")
        else:
            found += [re.escape(f"{before}layer_{i}/{after}") for i in sorted(have)]
    return tuple(found)


def _own_end(family: str, place: Place) -> str | None:
    """The shortest end of a place's path, from a '.' on, that no other place has."""
    words = place.torch.split(".")
    for size in range(1, len(words) + 1):
        end = ".".join(words[-size:])
        if "{i}" in end:
            return None
        others = [
            other
            for other in places(family)
            if other.torch != place.torch and f".{other.torch}".endswith(f".{end}")
        ]
        if not others:
            return end
    return None


def _in_layers(values: Mapping[str, Any], module: str) -> bool:
    """Whether `layers_to_transform` has the module's layer."""
    layers = values.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = values.get("layers_pattern") or ()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    forms = [re.compile(rf"(?:^|.*?\.){p}\.(?P<i>\d+)\.") for p in patterns]
    for form in forms or [_LAYER_NUMBER]:
        found = form.match(f".{module}" if not forms else module)
        if found:
            wanted = [layers] if isinstance(layers, int) else layers
            return int(found["i"]) in wanted
    return False
