"""Modules merged into one: updates are added, never factors of different modules."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fusion_jax import trees
from fusion_jax.peft.combine_check import combine_faults
from fusion_jax.peft.combine_config import joined, plain, without
from fusion_jax.peft.combine_layers import merge_leaves, merge_updates
from fusion_jax.peft.combine_replaced import merged_replaced
from fusion_jax.peft.combine_table import COMBINES, Combine
from fusion_jax.peft.low_rank import own_leaves
from fusion_jax.peft.module import Module
from fusion_jax.types import Key, Params


class Combined(NamedTuple):
    """A merged module.

    Attributes:
      module: what came out.
      lost: layer path -> relative Frobenius error of the cut to a rank; empty where
        nothing was cut.
    """

    module: Module
    lost: Mapping[str, float]


def combine(
    method: str,
    modules: Sequence[Module],
    weights: Sequence[float] | None = None,
    *,
    host: Params | None = None,
    key: Key | None = None,
    leave_out: str | None = None,
    strict_host: bool = False,
    **options: Any,
) -> Combined:
    """Merges modules of one kind, of any ranks and any targets.

    Low-rank updates s_k a_k b_k are merged layer by layer, a layer that a module lacks
    being an update of 0; the result has scaling 1. Leaves that stand for the host's own
    (a head, biases) move by sum_k w_k (leaf_k - host's leaf). Modules of weight 0 take
    no part. One that is left alone is scaled by its weight, whatever the method: with
    weight 1 it comes back as it is, config and all.

    Args:
      method: of `COMBINES`.
      modules: K modules of one kind.
      weights: K numbers; 1/K each without them.
      host: the host's parameters; DoRA needs them, and replaced leaves whose weights do
        not sum to 1.
      key: of methods that draw random masks.
      leave_out: pattern of leaf names, matched in full, that the result shall not have.
      strict_host: refuse modules of hosts with different weights, instead of a warning.
      **options: of the method; rank and energy of those that cut.

    Returns:
      `Combined`. Computed in float64, TIES and DARE in float32; leaves in the dtype of
      the modules'.

    Raises:
      ValueError: the method is unknown, or the modules cannot be merged so; every
        reason is listed.
    """
    if method not in COMBINES:
        raise ValueError(f"method {method!r} is not one of {', '.join(COMBINES)}")
    record = COMBINES[method]
    if weights is None:
        weights = [1.0 / max(1, len(modules))] * len(modules)
    weights = [float(weight) for weight in weights]
    taken = [(m, w) for m, w in zip(modules, weights, strict=False) if w]
    alone = len(taken) == 1 and _alone_weight(record, taken[0][1], options) == 1.0
    faults = combine_faults(
        method,
        record,
        modules,
        weights,
        [module for module, _ in taken],
        options,
        key=key is not None,
        host=host is not None,
        alone=alone,
    )
    several = _several_hosts([module for module, _ in taken])
    if several and strict_host:
        faults.append(several)
    if faults:
        raise _refused(method, faults)
    if several:
        warnings.warn(several, stacklevel=2)
    if leave_out is not None:
        taken = [(without(module, leave_out), w) for module, w in taken]
    if alone:
        return Combined(taken[0][0], {})
    return _merged(method, record, taken, options, host=host, key=key)


def _merged(
    method: str,
    record: Combine,
    taken: Sequence[tuple[Module, float]],
    options: Mapping[str, Any],
    *,
    host: Params | None,
    key: Key | None,
) -> Combined:
    modules, weights = [m for m, _ in taken], [w for _, w in taken]
    if len(modules) == 1:
        weights = [_alone_weight(record, weights[0], options)]
        method = _alone_method(modules[0])
        options = {k: v for k, v in options.items() if k in COMBINES[method].options}
        record = COMBINES[method]
    split = [own_leaves(module) for module in modules]
    replaced, faults = merged_replaced([rest for _, rest in split], weights, host)
    configs = [module.config for module in modules]
    if configs[0].kind == "lora":
        leaves, ranks, lost, wrong = merge_updates(
            record, modules, weights, options, host, key
        )
        config = plain(configs, ranks)
    else:
        leaves, wrong = merge_leaves(
            record, [own for own, _ in split], weights, options, key
        )
        config, lost = joined(configs, leaves), {}
    if faults + wrong:
        raise _refused(method, faults + wrong)
    facts = _common([module.host for module in modules])
    return Combined(
        Module(config, trees.unflatten({**leaves, **replaced}), facts), lost
    )


def _alone_weight(record: Combine, weight: float, options: Mapping[str, Any]) -> float:
    scale = float(options.get("scale", 1.0))
    return scale if record.ratios else weight * scale


def _alone_method(module: Module) -> str:
    """How a module is scaled; an update without a low rank is cut besides."""
    if module.config.kind != "lora":
        return "linear"
    return "svd" if module.config.use_dora else "concatenate"


def _common(hosts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all hosts that say it say alike."""
    names = dict.fromkeys(name for host in hosts for name in host)
    said = {name: [host[name] for host in hosts if name in host] for name in names}
    return {
        name: values[0]
        for name, values in said.items()
        if all(value == values[0] for value in values)
    }


def _several_hosts(modules: Sequence[Module]) -> str:
    """What is to be said where the modules' hosts have other weights."""
    hashes = {module.host["sha256"] for module in modules if module.host.get("sha256")}
    if len(hashes) < 2:
        return ""
    return (
        f"the modules were trained on {len(hashes)} hosts of one shape but of "
        "different weights; their updates may not belong together"
    )


def _refused(method: str, faults: Sequence[str]) -> ValueError:
    lines = "\n  ".join(faults[:40])
    more = f"\n  and {len(faults) - 40} more" if len(faults) > 40 else ""
    return ValueError(f"{method}: {len(faults)} faults:\n  {lines}{more}")
