"""A run's config from the command line: a file with options, and single fields."""

import difflib
import importlib.util
import json
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fusion_jax.cli.failures import WrongUsage


def read_config(text: str) -> ConfigDict:
    """The config of 'FILE.py' or 'FILE.py:options', from its `get_config`.

    Raises:
      WrongUsage: there is no such file, it has no `get_config`, or the options are
        not understood.
    """
    name, colon, options = text.partition(":")
    file = Path(name)
    if not file.is_file():
        raise WrongUsage(f"--config: there is no file {name}")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise WrongUsage(f"--config: {name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise WrongUsage(f"--config: {name} defines no get_config(argument)")
    try:
        return module.get_config(options if colon else None)
    except ValueError as error:
        raise WrongUsage(f"{name}: {error}") from error
    except AttributeError as error:
        told = unknown_field(error, name)
        if told is None:
            raise
        raise WrongUsage(told) from error


def unknown_field(error: AttributeError, config: str) -> str | None:
    """What to say of a field that a config has not; None for any other error.

    Args:
      error: of ml_collections, if it is one; it may list the whole config.
      config: the config file, whose line is told where it is the one that asks.
    """
    if not error.args or not isinstance(error.args[0], KeyError):
        return None
    told = str(error.args[0].args[0])
    name = re.search(r"""["'](\w+)["']""", told)
    near = re.search(r'Did you mean "(\w+)"', told)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == config
    ]
    return (
        (f"{config}, line {lines[-1]}: " if lines else "")
        + f"the config has no field '{name[1] if name else told}'"
        + (f"; did you mean '{near[1]}'?" if near else "")
    )


def set_fields(config: ConfigDict, assignments: Sequence[str]) -> None:
    """Sets fields written as 'search.budget=64', in place.

    A value has the type of what it replaces; a list is written as JSON or with '+'.

    Raises:
      WrongUsage: unknown fields (the nearest known one is offered) and values that do
        not read, all at once.
    """
    known = dict(_flat(config))
    values, wrong = {}, []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            wrong.append(f"'{assignment}': write FIELD=VALUE")
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = (
                f"did you mean '{near[0]}'?"
                if near
                else (f"known are {', '.join(known)}")
            )
            wrong.append(f"'{name}' is no field of the config; {hint}")
        else:
            try:
                values[name] = _read(text, known[name])
            except ValueError as error:
                wrong.append(f"'{assignment}': {error}")
    if wrong:
        raise WrongUsage(f"--set: {'; '.join(wrong)}")
    for name, value in values.items():
        place: Any = config
        *parents, last = name.split(".")
        for parent in parents:
            place = place[parent]
        place[last] = value


def _flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    if isinstance(old, list | tuple):
        return type(old)(_items(text))
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = None
    expected = (int, float) if isinstance(old, float) else type(old)
    # A bool is an int for isinstance, and no number here.
    if not isinstance(value, expected) or isinstance(value, bool) != (
        isinstance(old, bool)
    ):
        name = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"{name.get(type(old), type(old).__name__)} expected")
    return type(old)(value)


def _items(text: str) -> list[Any]:
    if not text.lstrip().startswith("["):
        return [part for part in text.split("+") if part]
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"not a JSON list ({error})") from error
