"""What must hold before modules are merged; every fault is found before any work."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.peft.combine_table import COMBINES, Combine
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.module import Module

# Of a config: how a module was trained, and what low-rank updates have folded in.
_TRAINING = ("dropout", "init", "targets", "feedforward", "replaces", "train_norms")
# By them BitFit says which leaves are its own.
_BIASES = ("targets", "bitfit")
_HOST = ("family", "hidden_size", "num_layers")


def combine_faults(
    method: str,
    record: Combine,
    modules: Sequence[Module],
    weights: Sequence[float],
    taken: Sequence[Module],
    options: Mapping[str, Any],
    *,
    key: bool,
    host: bool,
    alone: bool,
) -> list[str]:
    """Every reason why these modules cannot be merged so.

    Args:
      method: name of the record.
      record: of `COMBINES`.
      modules: K modules.
      weights: K numbers.
      taken: those whose weight is not 0.
      options: of the method.
      key: whether a key is given.
      host: whether the host is given.
      alone: whether the one module comes back as it is.

    Returns:
      What is wrong, one line each.
    """
    faults = _number_faults(method, record, modules, weights)
    unknown = sorted(options.keys() - set(record.options))
    if unknown:
        known = ", ".join(record.options) or "none"
        faults.append(f"{', '.join(unknown)}: no option of {method}, which has {known}")
    if record.key and not key:
        faults.append(f"{method} draws random masks: give key=jax.random.key(seed)")
    kinds = list(dict.fromkeys(module.config.kind for module in taken))
    if len(kinds) > 1:
        faults.append(f"kinds {', '.join(kinds)}: modules of one kind can be merged")
    for kind in kinds:
        if kind not in record.kinds:
            others = [name for name, one in COMBINES.items() if kind in one.kinds]
            faults.append(
                f"{method} does not merge {kind}; {', '.join(others) or 'nothing'} does"
            )
    if alone:
        return faults
    faults += _host_faults(taken)
    for number, module in enumerate(taken):
        own = _own_faults(method, module, host)
        faults += [f"module {number}: {fault}" for fault in own]
    if len(kinds) == 1 and kinds[0] not in ("lora", "ia3"):
        faults += _config_faults([module.config for module in taken])
    return faults


def _number_faults(
    method: str, record: Combine, modules: Sequence[Module], weights: Sequence[float]
) -> list[str]:
    if len(weights) != len(modules):
        return [f"{len(weights)} weights for {len(modules)} modules"]
    if not modules:
        return ["no modules given"]
    faults = []
    if not all(math.isfinite(weight) for weight in weights):
        faults.append(f"weights {list(weights)} are not all finite")
    elif not any(weights):
        faults.append("all weights are 0")
    elif record.ratios and min(weights) < 0:
        faults.append(f"{method} takes no weight below 0; only their ratios count")
    return faults


def _host_faults(modules: Sequence[Module]) -> list[str]:
    faults = []
    for fact in _HOST:
        said = {module.host[fact] for module in modules if module.host.get(fact)}
        if len(said) > 1:
            faults.append(
                f"their hosts differ in {fact}: {', '.join(sorted(map(str, said)))}; "
                "port them to one host first"
            )
    return faults


def _own_faults(method: str, module: Module, host: bool) -> list[str]:
    config = module.config
    if config.init == "pissa":
        return [
            "PiSSA changed its host at the start: make it a plain low-rank update of "
            "the original host first (peft.portable)"
        ]
    if config.use_dora and (not host or method in ("concatenate", "linear_factors")):
        return [
            "DoRA rescales every column of the host's kernel, so its update has no low "
            "rank: merge by svd with host=, whose kernels it is taken from, or merge "
            "it into the host (peft.merge_into) and merge the models"
        ]
    return []


def _config_faults(configs: Sequence[PeftConfig]) -> list[str]:
    """Leaves of a network can be added only where the networks are the same."""
    faults = []
    for field in dataclasses.fields(PeftConfig):
        if field.name in _TRAINING and (field.name, configs[0].kind) != _BIASES:
            continue
        said = list(dict.fromkeys(getattr(config, field.name) for config in configs))
        if len(said) > 1:
            faults.append(
                f"their {field.name} differs: {', '.join(map(str, said))}; the leaves "
                "of different networks cannot be added"
            )
    return faults
