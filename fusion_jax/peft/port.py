"""Moves a module from one pretrained model to another."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.delta import rank_of, scaling
from fusion_jax.peft.module import Module
from fusion_jax.peft.port_carry import Carry
from fusion_jax.peft.port_check import check_fits, check_module, check_taken
from fusion_jax.peft.port_depth import (
    DEPTHS,
    layers_taken,
    mean,
    mean_product,
    share_of,
)
from fusion_jax.peft.port_host import LAYER, Host, size_of
from fusion_jax.peft.port_leaves import meaning_of
from fusion_jax.peft.port_maps import Map, Maps, NoMeaning, identity
from fusion_jax.peft.port_table import port_named

MAGNITUDES = ("relative", "absolute")

# (suffix of the left factor, of the right one): what is averaged as a product.
_PRODUCTS = (("/lora/a", "/lora/b"), ("/left", "/right"))


class Route(NamedTuple):
    """The way from one host to another.

    Attributes:
      source: the modules' host.
      target: the receiver.
      method: of `PORTS`.
      taken: for each layer of the receiver the origin's layers that it takes.
      maps: between widths.
    """

    source: Host
    target: Host
    method: str
    taken: Sequence[tuple[int, ...]]
    maps: Maps


def port(
    module: Module,
    source: Host,
    target: Host,
    method: str = "copy",
    *,
    depth: str = "skip",
    magnitude: str = "relative",
    **options: Any,
) -> Module:
    """A module of one host as a module of another.

    Layers first: each of the receiver's takes one or several of the origin's, and what
    none takes is told in a warning; several are averaged (products of LoRA and
    Compacter as products, then cut back to their rank). Where the module has no part, a
    low-rank update, an adapter or a Compacter adds 0, which counts in the mean; leaves
    of any other kind (scales, magnitudes, rows, the host's own) are averaged over the
    layers that have them. Then widths: an axis that reads activations of the host is
    multiplied by the map that reads the origin's from the receiver's, one that writes
    by the other. A leaf that stands in the place of one of the host's (biases, norms)
    is moved as its difference from it, but copied as it is by 'copy'.

    Args:
      module: with leaves of a head, if that is to go along; no residual inits such as
        PiSSA's, which are made portable before.
      source: the module's host.
      target: the receiver.
      method: of `PORTS`.
      depth: of `DEPTHS`, for methods that leave it open.
      magnitude: of DoRA: 'relative' keeps m / |W| of every output, 'absolute' m itself.
      options: of the method.

    Returns:
      The module on the receiver; the configuration is the same, dtypes are kept, maps
      act in float64. Leaves that nothing has to change are bit for bit the module's.

    Raises:
      ValueError: an unknown method or option, or a module that is bound to its host.
      TreeMismatch: sizes or layers differ where they may not, all are listed; or no
        layer of the receiver takes one that the module has leaves at.
      NoMeaning: the method says nothing about leaves of this kind; all are listed.

    Reference: Sabry and Belz 2024, arXiv 2401.14228, for equal shapes.
    """
    route = route_between(source, target, method, depth=depth, **options)
    return port_along(route, module, magnitude=magnitude)


def route_between(
    source: Host,
    target: Host,
    method: str = "copy",
    *,
    depth: str = "skip",
    **options: Any,
) -> Route:
    """How modules go from one host to another; found once, it serves many.

    Args:
      source: the modules' host.
      target: the receiver.
      method: of `PORTS`.
      depth: of `DEPTHS`, for methods that leave it open.
      options: of the method.

    Raises:
      ValueError: an unknown method or option.
    """
    way = port_named(method)
    unknown = sorted(options.keys() - way.options.keys())
    if unknown:
        raise ValueError(
            f"port: '{method}' takes no {', '.join(unknown)}; it takes "
            f"{', '.join(way.options) or 'no options'}"
        )
    if depth not in DEPTHS:
        raise ValueError(f"port: depth '{depth}' is not one of {', '.join(DEPTHS)}")
    rule = depth if way.depth == "any" else way.depth
    if rule == "equal":
        taken = [(j,) for j in range(target.num_layers)]
    else:
        taken = layers_taken(source.num_layers, target.num_layers, rule)
    maps = _unmoved(source, target)
    if way.maps is not None:
        maps = way.maps(source, target, taken, **options)
    return Route(source, target, method, taken, maps)


def port_along(route: Route, module: Module, *, magnitude: str = "relative") -> Module:
    """As `port`, on a route that was found before."""
    if magnitude not in MAGNITUDES:
        raise ValueError(
            f"port: magnitude '{magnitude}' is not one of {', '.join(MAGNITUDES)}"
        )
    check_module(module)
    way, source, target = port_named(route.method), route.source, route.target
    leaves = trees.flatten(module.params)
    plan = _plan(leaves, route.taken)
    check_fits(
        leaves,
        plan,
        source,
        target,
        equal_layers=way.depth == "equal",
        fixed_only=way.maps is not None,
    )
    if way.depth != "equal":  # `check_fits` has listed what is beyond
        check_taken(leaves, route.taken, source, target)
    carry = Carry(leaves, source, target, route.maps, magnitude, route.method == "copy")
    ported = _all_carried(carry, plan, route.taken, module.config)
    params = {
        name: jnp.asarray(value, leaves[plan[name][0]].dtype)
        for name, value in ported.items()
    }
    return Module(module.config, trees.unflatten(params), dict(target.record))


def _plan(
    leaves: Mapping[str, Any], taken: Sequence[tuple[int, ...]]
) -> dict[str, list[str]]:
    """Leaf of the receiver's module -> leaves of the module that it is made from."""
    plan: dict[str, list[str]] = {}
    for name in leaves:
        found = LAYER.fullmatch(name)
        if found is None:
            plan[name] = [name]
            continue
        for j, group in enumerate(taken):
            if int(found[2]) in group:
                plan.setdefault(f"{found[1]}layer_{j}/{found[3]}", []).append(name)
    return plan


def _unmoved(source: Host, target: Host) -> Maps:
    """The maps between equal widths; `check_fits` has seen that they are."""

    def maps(path: str, source_path: str, side: str) -> Map:
        size = size_of(target, path, side) or size_of(source, source_path, side)
        return identity(size or 0)

    return maps


def _all_carried(
    carry: Carry,
    plan: Mapping[str, Sequence[str]],
    taken: Sequence[tuple[int, ...]],
    config: PeftConfig,
) -> dict[str, np.ndarray]:
    """Every leaf of the receiver's module; all that has no meaning raised at once."""
    ported: dict[str, np.ndarray] = {}
    wrong = []
    for name, sources in plan.items():
        if name in ported:
            continue
        try:
            share = share_of(name, sources, taken)
            left = next((ends for ends in _PRODUCTS if name.endswith(ends[0])), None)
            if left is not None:
                other = name.removesuffix(left[0]) + left[1]
                ported[name], ported[other] = _product(
                    carry, name, sources, other, plan[other], share, config
                )
            elif not any(name.endswith(ends[1]) for ends in _PRODUCTS):
                ported[name] = mean([carry(name, one) for one in sources], share)
        except NoMeaning as error:
            wrong.append(str(error))
    if wrong:
        raise NoMeaning("\n".join(wrong))
    return {name: ported[name] for name in plan}


def _product(
    carry: Carry,
    name: str,
    lefts: Sequence[str],
    other: str,
    rights: Sequence[str],
    share: float,
    config: PeftConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Two factors whose product is ported: as they are, or the mean of products."""
    left = [carry(name, one) for one in lefts]
    right = [carry(other, one) for one in rights]
    weights = [share / len(left)] * len(left)
    rank = left[0].shape[-1]
    if name.endswith("/lora/a"):
        path = meaning_of(name).path
        rank = rank_of(config, path)
        weights = [
            w
            * scaling(config, meaning_of(one).path, x.shape[-1])
            / scaling(config, path, rank)
            for w, one, x in zip(weights, lefts, left, strict=True)
        ]
    if len(left) == 1 and left[0].shape[-1] == rank:
        return left[0], right[0] if weights[0] == 1 else weights[0] * right[0]
    return mean_product(left, right, weights, rank)
