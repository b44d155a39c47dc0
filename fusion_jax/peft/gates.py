"""Low-rank modules side by side: a weighting of them is one small leaf a layer.

Modules with updates s_k a_k b_k are held once as their stacked factors

    A = [a_1 ... a_K] [in, R],  B = [b_1; ...; b_K] [R, out],  R = r_1 + ... + r_K,

and a gate g [R] that holds s_k in the places of module k. A diag(g) B is the update,
and it is linear in the gate: the weights c give the gate sum_k c_k g_k and with it
sum_k c_k s_k a_k b_k, exactly and with no matrix [in, out] formed. So what interpolates
parameters (a search, a soup) interpolates updates, and all candidates read one A and
one B.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.delta import alpha_of, scaling
from fusion_jax.peft.lora import parts
from fusion_jax.peft.module import Module
from fusion_jax.trees import flatten, unflatten
from fusion_jax.types import Params


class Gated(NamedTuple):
    """Modules side by side.

    Attributes:
      config: for `attach` and `merge_into` of factors with a gate.
      factors: tree of 'PATH/lora/a' [in, R] and 'PATH/lora/b' [R, out].
      gates: tree of 'PATH/lora/gate' [R] of each module.
    """

    config: PeftConfig
    factors: Params
    gates: tuple[Params, ...]


def gated(modules: Mapping[str, Module]) -> Gated:
    """Stacks low-rank modules; their ranks, scalings and layers may differ.

    Args:
      modules: name -> module of kind lora, for one host. A module that has no part at a
        layer has a gate of zeros there. Leaves that replace the host's are not read.

    Returns:
      The stacked factors and a gate for each module; float32.

    Raises:
      ValueError: a module of another kind or with a magnitude (DoRA), whose update is
        not a product of factors, one that changed its host (PiSSA), or sides that do
        not fit; all are named.
    """
    own = {name: parts(module.params) for name, module in modules.items()}
    _check(modules, own)
    places = list(dict.fromkeys(path for layers in own.values() for path in layers))
    factors: dict[str, Any] = {}
    gates: list[dict[str, Any]] = [{} for _ in modules]
    for path in places:
        there = [(k, own[n][path]) for k, n in enumerate(own) if path in own[n]]
        configs = [modules[list(own)[k]].config for k, _ in there]
        factors[f"{path}/lora/a"] = _joined([leaves["a"] for _, leaves in there], 1)
        factors[f"{path}/lora/b"] = _joined([leaves["b"] for _, leaves in there], 0)
        total = factors[f"{path}/lora/b"].shape[0]
        for gate in gates:
            gate[f"{path}/lora/gate"] = np.zeros(total, np.float32)
        start = 0
        for (k, leaves), config in zip(there, configs, strict=True):
            rank = leaves["b"].shape[0]
            values = leaves.get("gate", scaling(config, path, rank))
            gates[k][f"{path}/lora/gate"][start : start + rank] = values
            start += rank
    config = PeftConfig(
        replaces=_replaces(modules),
        train_norms=any(module.config.train_norms for module in modules.values()),
    )
    return Gated(
        config,
        unflatten(factors),
        tuple(
            unflatten({n: jnp.asarray(g) for n, g in gate.items()}) for gate in gates
        ),
    )


def ungated(module: Module) -> Module:
    """A low-rank module without gates: each is multiplied into its a, and s is 1.

    Args:
      module: of kind lora, its layers with a gate or without.

    Returns:
      A module of the same update, whose config names its layers; one without a gate
      comes back as it is.
    """
    config, leaves = module.config, flatten(module.params)
    layers = parts(module.params)
    if not any("gate" in own for own in layers.values()):
        return module
    ranks, alphas = {}, {}
    for path, own in layers.items():
        ranks[path] = rank = own["b"].shape[0]
        alphas[path] = alpha_of(config, path)
        gate = leaves.pop(f"{path}/lora/gate", None)
        if gate is not None:
            leaves[f"{path}/lora/a"] = own["a"] * gate
            alphas[path] = math.sqrt(rank) if config.use_rslora else float(rank)
    rank, alpha = (max(x.values(), key=list(x.values()).count) for x in (ranks, alphas))
    plain = dataclasses.replace(
        config,
        # Whole paths: a tail would mean the layers too that have no part.
        targets=tuple(map(re.escape, ranks)),
        rank=rank,
        alpha=alpha,
        rank_pattern=tuple((re.escape(p), r) for p, r in ranks.items() if r != rank),
        alpha_pattern=tuple((re.escape(p), a) for p, a in alphas.items() if a != alpha),
    )
    return module._replace(config=plain, params=unflatten(leaves))


def _joined(factors: Sequence[Any], axis: int) -> Any:
    return jnp.concatenate([jnp.asarray(x, jnp.float32) for x in factors], axis=axis)


def _replaces(modules: Mapping[str, Module]) -> tuple[str, ...]:
    """What all modules replace of the host: one tree holds them all."""
    every = (p for module in modules.values() for p in module.config.replaces)
    return tuple(dict.fromkeys(every))


def _check(
    modules: Mapping[str, Module], own: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
    wrong = [
        f"{name} is of kind {module.config.kind}"
        for name, module in modules.items()
        if module.config.kind != "lora"
    ]
    wrong += [
        f"{name} has init 'pissa', which took a part out of its host (make it a plain "
        "LoRA of the whole host with peft.portable first)"
        for name, module in modules.items()
        if module.config.init == "pissa"
    ]
    wrong += [
        f"{name} has magnitudes (DoRA)"
        for name, layers in own.items()
        if any("magnitude" in leaves for leaves in layers.values())
    ]
    sides: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, layers in own.items():
        for path, leaves in layers.items():
            shape = leaves["a"].shape[0], leaves["b"].shape[1]
            first, expected = sides.setdefault(path, (name, shape))
            if shape != expected:
                wrong.append(f"{path} is {expected} in {first} and {shape} in {name}")
    if wrong:
        raise ValueError(
            f"modules that cannot stand side by side: {'; '.join(wrong)}; give "
            "low-rank modules of one host, or interpolate the leaves as they are"
        )
