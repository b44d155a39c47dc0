"""Everything that makes no sense in a module's options, in words."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

OWN = {
    "lora": (
        *("rank", "alpha", "rank_pattern", "alpha_pattern"),
        *("use_rslora", "use_dora", "dropout"),
    ),
    "ia3": ("feedforward",),
    "adapter": ("place", "reduction_factor", "bottleneck", "activation", "scale"),
    "compacter": (
        *("place", "reduction_factor", "bottleneck", "activation", "scale"),
        *("phm_dim", "phm_rank"),
    ),
    "prefix": ("length", "mlp_width", "shift_positions"),
    "prompt": ("length",),
    "bitfit": (),
}
"""kind -> the options that it reads beside those that all kinds read."""


def faults(config: Any, choices: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with a config; empty if nothing is.

    Args:
      config: a `PeftConfig`.
      choices: option -> the words that it may be.
    """
    wrong = _types(config)
    if not wrong:
        wrong = [*_chosen(config, choices), *_numbers(config), *_patterns(config)]
    return wrong or _together(config)


def _types(config: Any) -> list[str]:
    """Values of another type: nothing else can be read then."""
    wrong = [
        f"{name} = {getattr(config, name)!r}: a list of patterns"
        for name in ("targets", "feedforward", "replaces")
        if not all(isinstance(one, str) for one in getattr(config, name))
    ]
    wrong += [
        f"{name} = {getattr(config, name)!r}: a list of pairs (pattern, number)"
        for name in ("rank_pattern", "alpha_pattern")
        if not all(
            len(pair) == 2 and isinstance(pair[0], str)
            for pair in getattr(config, name)
        )
    ]
    wrong += [
        f"{name} = {getattr(config, name)!r}: a word"
        for name in ("kind", "init", "place", "activation")
        if not isinstance(getattr(config, name), str)
    ]
    return wrong


def _chosen(config: Any, choices: Mapping[str, Sequence[str]]) -> list[str]:
    if config.kind not in choices["kind"]:
        return [f"kind = {config.kind!r}: choose one of {', '.join(choices['kind'])}"]
    return [
        f"{name} = {getattr(config, name)!r}: for {config.kind} choose one of "
        f"{', '.join(map(repr, allowed))}"
        for name, allowed in choices.items()
        if getattr(config, name) not in allowed
    ]


def _numbers(config: Any) -> list[str]:
    least = {"rank": 1, "phm_dim": 1, "phm_rank": 1}
    least |= dict.fromkeys(("bottleneck", "length", "mlp_width"), 0)
    wrong = [
        f"{name} = {getattr(config, name)!r}: a whole number, at least {limit}"
        for name, limit in least.items()
        if not _whole(getattr(config, name), limit)
    ]
    for name in ("alpha", "dropout", "reduction_factor", "scale"):
        if not _real(getattr(config, name)):
            wrong.append(f"{name} = {getattr(config, name)!r}: a finite number")
    for name in ("use_rslora", "use_dora", "train_norms", "shift_positions"):
        if not isinstance(getattr(config, name), bool):
            wrong.append(f"{name} = {getattr(config, name)!r}: true or false")
    if _real(config.alpha) and not config.alpha > 0:
        wrong.append(f"alpha = {config.alpha!r}: above 0")
    if _real(config.dropout) and not 0 <= config.dropout < 1:
        wrong.append(f"dropout = {config.dropout!r}: in [0, 1)")
    if _real(config.reduction_factor) and config.reduction_factor < 0:
        wrong.append(f"reduction_factor = {config.reduction_factor!r}: at least 0")
    wrong += [
        f"rank_pattern: {pattern!r} has rank {rank!r}: a whole number, at least 1"
        for pattern, rank in config.rank_pattern
        if not _whole(rank, 1)
    ]
    wrong += [
        f"alpha_pattern: {pattern!r} has alpha {alpha!r}: finite, above 0"
        for pattern, alpha in config.alpha_pattern
        if not (_real(alpha) and alpha > 0)
    ]
    return wrong


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _real(value: Any) -> bool:
    """Whether a value is a number, and a finite one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _patterns(config: Any) -> list[str]:
    wrong = []
    lists = {
        name: getattr(config, name) for name in ("targets", "feedforward", "replaces")
    }
    for name in ("rank_pattern", "alpha_pattern"):
        lists[name] = tuple(pattern for pattern, _ in getattr(config, name))
    for name, patterns in lists.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                wrong.append(f"{name}: {pattern!r} is no regular expression ({error})")
    return wrong


def _together(config: Any) -> list[str]:
    """Options that exclude each other, or that this kind would not read."""
    every = {name for names in OWN.values() for name in names}
    foreign = sorted(every - set(OWN[config.kind]))
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    wrong = [
        f"{name} = {getattr(config, name)!r}: {config.kind} does not read it, leave it "
        f"at {defaults[name]!r}"
        for name in foreign
        if getattr(config, name) != defaults[name]
    ]
    if config.kind == "compacter" and config.place == "parallel":
        wrong.append("place = 'parallel': a compacter is houlsby or pfeiffer")
    if config.use_dora and config.init == "pissa":
        wrong.append("use_dora with init = 'pissa': choose one of the two")
    if config.kind == "prompt" and config.targets:
        wrong.append("targets: a prompt stands before the word table alone")
    return wrong
