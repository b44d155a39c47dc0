"""Shared helpers of config files: options after the colon, and the smoke run."""

import difflib
from collections.abc import Mapping
from typing import Any

Config = Any
"""A `ml_collections.ConfigDict`; its fields have types that no checker can know."""


def parse_options(argument: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options behind a config's colon, 'data=DIR,target=NAME,sources=A+B,smoke'.

    Args:
      argument: what follows the colon, or None.
      defaults: name -> default, whose type is the option's: str, int, float, bool, or
        tuple (written with '+'). A bare name switches a bool on.

    Returns:
      name -> value, defaults filled in.

    Raises:
      ValueError: unknown names (the nearest known one is offered) and values that do
        not read, all at once.
    """
    values = dict(defaults)
    wrong = []
    for item in filter(None, (argument or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            wrong.append(f"'{name}' is unknown{hint}")
            continue
        try:
            values[name] = _read(text, defaults[name], bool(equals))
        except ValueError as error:
            wrong.append(f"'{item}': {error}")
    if wrong:
        raise ValueError(
            f"config options: {'; '.join(wrong)}. Known: {', '.join(defaults)}"
        )
    return values


def _read(text: str, default: Any, given: bool) -> Any:
    if isinstance(default, bool):
        if not given or text in ("true", "1"):
            return True
        if text in ("false", "0"):
            return False
        raise ValueError("true or false expected")
    if not given:
        raise ValueError("a value is missing, write name=value")
    if isinstance(default, tuple):
        return tuple(part for part in text.split("+") if part)
    return type(default)(text)
