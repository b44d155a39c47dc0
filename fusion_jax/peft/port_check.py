"""What keeps a module from a host: sizes, layers, inits that are bound to one."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax import trees
from fusion_jax.peft.module import Module
from fusion_jax.peft.port_host import LAYER, Host, size_of
from fusion_jax.peft.port_leaves import Axis, Meaning, meaning_of


def check_module(module: Module) -> None:
    """Raises ValueError where a module is no function of the plain host.

    PiSSA and its kin change the host they are trained on.
    """
    if module.config.init == "pissa":
        raise ValueError(
            "port: the module's init is 'pissa', which took a part out of its host; "
            "make it a plain LoRA of the whole host with peft.portable first"
        )


def check_taken(
    leaves: Mapping[str, Any],
    taken: Sequence[tuple[int, ...]],
    source: Host,
    target: Host,
) -> None:
    """Warns of layers of the module that no layer of the receiver takes.

    Args:
      leaves: of the module, by name.
      taken: for each layer of the receiver the origin's layers that it takes.
      source: the module's host.
      target: the receiver.

    Raises:
      TreeMismatch: none of them is taken: nothing would be left of the module.
    """
    own = {int(found[2]) for name in leaves if (found := LAYER.fullmatch(name))}
    lost = sorted(own.difference(*taken))
    if not lost:
        return
    numbers = ", ".join(map(str, lost))
    if len(lost) == len(own):
        every = ", ".join(map(str, sorted(set().union(*taken))))
        raise trees.TreeMismatch(
            f"the module has leaves at layers {numbers} of {source.name}, and "
            f"{target.name} takes layers {every} alone: nothing of it would be left; "
            "port it by 'average', or with depth='average'"
        )
    warnings.warn(
        f"the module's leaves at layers {numbers} of {source.name} are in no layer of "
        f"{target.name}; 'average', or depth='average', takes all layers",
        stacklevel=3,
    )


def check_fits(
    leaves: Mapping[str, Any],
    plan: Mapping[str, Sequence[str]],
    source: Host,
    target: Host,
    *,
    equal_layers: bool = False,
    fixed_only: bool = False,
) -> None:
    """Raises TreeMismatch with every leaf that the receiver has no place for.

    Args:
      leaves: of the module, by name.
      plan: leaf of the receiver's module -> leaves that it is made from.
      source: the module's host.
      target: the receiver.
      equal_layers: whether both hosts must have as many layers.
      fixed_only: whether only sizes count that no map changes, such as the number of
        words of a table.
    """
    wrong = []
    if equal_layers and source.num_layers != target.num_layers:
        wrong.append(
            f"layers: {source.num_layers} in {source.name}, {target.num_layers} in "
            f"{target.name}; port by 'skip' or 'average'"
        )
        beyond = [
            name
            for name in leaves
            if (found := LAYER.fullmatch(name)) and int(found[2]) >= target.num_layers
        ]
        wrong += [f"{name}: {target.name} has no such layer" for name in beyond]
    for name, sources in plan.items():
        meaning = meaning_of(name, leaves)
        shape = np.shape(leaves[sources[0]])
        wrong += _misfits(name, shape, meaning, target, fixed_only)
    if wrong:
        raise trees.TreeMismatch(
            f"the module of {source.name} does not fit {target.name}:\n  "
            + "\n  ".join(wrong)
            + "\nHosts of other widths take modules by 'correlation', 'ridge' or "
            "'subspace'."
        )


def _misfits(
    name: str, shape: tuple[int, ...], meaning: Meaning, target: Host, fixed_only: bool
) -> list[str]:
    found = []
    for number, axis in enumerate(meaning.axes):
        if not isinstance(axis, Axis):
            continue
        wanted = size_of(target, meaning.path, axis.side)
        if wanted is None:
            if meaning.own or not meaning.path.startswith("head/"):
                return [f"{name}: {target.name} has no layer {meaning.path}"]
        elif wanted != shape[number] and (axis.fixed or not fixed_only):
            found.append(
                f"{name}: shape {shape}, and the {axis.side} side of {meaning.path} in "
                f"{target.name} is {wanted} wide"
            )
    if meaning.form == "whole" and meaning.path and not fixed_only:
        wanted = size_of(target, meaning.path, "out")
        # [n, in/n, rank] of what is read, [n, rank, out/n] of what is written.
        inner = {"down/left": shape[:2], "up/right": shape[::2]}
        held = next(
            (int(np.prod(s)) for end, s in inner.items() if name.endswith(end)), wanted
        )
        if wanted is None:
            found.append(f"{name}: {target.name} has no layer {meaning.path}")
        elif held != wanted:
            found.append(
                f"{name}: shape {shape} is for a width of {held}, and {meaning.path} "
                f"in {target.name} is {wanted} wide"
            )
    return found
