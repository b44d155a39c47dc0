"""Values of Hugging Face peft's adapter_config.json that are of no type it has.

What reads the config afterwards asks no more: 'false' would be a switch that is on,
'0' a layer that no module has, and a pattern that is none an error without a name.
"""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

Test = Callable[[Any], bool]


def _number(value: Any) -> bool:
    whole_or_real = isinstance(value, int | float) and not isinstance(value, bool)
    return whole_or_real and abs(value) <= sys.float_info.max


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _word(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _list_of(test: Test) -> Test:
    # Configs that never were a file have tuples and sets.
    return lambda value: (
        isinstance(value, list | tuple | set | frozenset) and all(map(test, value))
    )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _map_to(test: Test) -> Test:
    return lambda value: (
        isinstance(value, Mapping)
        and all(map(_text, value))
        and all(map(test, value.values()))
    )


def _either(*tests: Test) -> Test:
    return lambda value: value is None or any(test(value) for test in tests)


_NAMES = "a list of names or one regular expression"
_TYPES: Mapping[str, tuple[Test, str]] = {
    "r": (_count, "a whole number"),
    "lora_alpha": (_number, "a finite number"),
    "lora_dropout": (_either(_number), "a finite number"),
    "rank_pattern": (_either(_map_to(_count)), "a map of patterns to whole numbers"),
    "alpha_pattern": (_either(_map_to(_number)), "a map of patterns to numbers"),
    "use_rslora": (_switch, "true or false"),
    "use_dora": (_switch, "true or false"),
    "fan_in_fan_out": (_switch, "true or false"),
    "prefix_projection": (_switch, "true or false"),
    "bias": (_word, "a word"),
    "base_model_name_or_path": (_word, "a word"),
    "init_lora_weights": (_either(_switch, _text), "true, false or a word"),
    "target_modules": (_either(_text, _list_of(_text)), _NAMES),
    "exclude_modules": (_either(_text, _list_of(_text)), _NAMES),
    "feedforward_modules": (_either(_text, _list_of(_text)), _NAMES),
    "modules_to_save": (_either(_list_of(_text)), "a list of names"),
    "layers_to_transform": (
        _either(_count, _list_of(_count)),
        "a whole number or a list of them",
    ),
    "layers_pattern": (_either(_text, _list_of(_text)), "a name or a list of names"),
    "num_layers": (_either(_count), "a whole number"),
    "num_transformer_submodules": (_either(_count), "a whole number"),
}
"""Key -> (whether a value is of its type, what it must be); the counts of virtual
tokens are looked at where they are read."""

# Key -> what its patterns are put into when names are matched.
_PATTERNS: Mapping[str, str] = {
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<i>\d+)\.",
}
# Their lists are names; only a single string is a pattern.
_SINGLE = ("target_modules", "exclude_modules", "feedforward_modules")


def value_faults(values: Mapping[str, Any]) -> list[str]:
    """Every value of another type than its key has, and every pattern that is none.

    Args:
      values: of adapter_config.json.
    """
    faults = []
    for key, (test, wanted) in _TYPES.items():
        if key in values and not test(values[key]):
            faults.append(f"{key} is {values[key]!r}: {wanted} is expected")
        else:
            faults += [
                f"{key}: {pattern!r} is no regular expression ({error})"
                for pattern in _patterns(key, values.get(key))
                if (error := _error(_PATTERNS.get(key, "{}"), pattern))
            ]
    return faults


def _patterns(key: str, value: Any) -> list[str]:
    if key in _PATTERNS:
        return [value] if isinstance(value, str) else list(value or ())
    return [value] if key in _SINGLE and isinstance(value, str) else []


def _error(form: str, pattern: str) -> str:
    try:
        re.compile(form.replace("{}", pattern))
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return ""
