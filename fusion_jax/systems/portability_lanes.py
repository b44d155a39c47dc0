"""Where the modules of a cell begin: ported, or made as a control of what is."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fusion_jax import trees
from fusion_jax.models.config import EncoderConfig
from fusion_jax.peft.controls import CONTROLS
from fusion_jax.peft.module import Module, init_module, with_module
from fusion_jax.peft.port import Route, port_along, route_between
from fusion_jax.peft.port_table import PORTS
from fusion_jax.systems.portability_defaults import INITS
from fusion_jax.systems.portability_grid import Cell, Lane, Origin
from fusion_jax.systems.portability_origins import Trained, module_key
from fusion_jax.systems.portability_setting import HEAD, Setting, peft_config
from fusion_jax.systems.portability_states import with_states
from fusion_jax.types import Params

PORTED, SCRATCH = INITS[:2]


def lane_leaves(
    setting: Setting, cell: Cell, trained: Mapping[Origin, Trained]
) -> list[Params]:
    """Where each lane begins: module and head.

    Args:
      setting: of the study.
      cell: which.
      trained: the origins' modules, heads among their leaves.
    """
    peft = peft_config(setting.config, cell.technique)
    ported: dict[Origin, Module] = {}
    fresh = setting.whole(cell.host, cell.task, cell.seed)
    starts = []
    for lane in cell.lanes:
        origin = origin_of(cell, lane)
        if origin not in ported:
            ported[origin] = ported_module(
                setting, origin, cell.host, cell.task, trained
            )
        head, module = trees.partition(ported[origin].params, HEAD)
        key = module_key(cell.seed, cell.technique, cell.host, cell.task, lane.init)
        if lane.init == SCRATCH:
            module = trees.partition(init_module(peft, fresh, key).params, HEAD)[1]
        elif lane.init != PORTED:
            module = CONTROLS[lane.init](module, key)
        if setting.config.head == "fresh":
            head = {"head": fresh["head"]}
        starts.append(with_module(head, module))
    return starts


def ported_module(
    setting: Setting,
    origin: Origin,
    receiver: str,
    task: str,
    trained: Mapping[Origin, Trained],
) -> Module:
    """An origin's module on the receiver, with its head.

    Args:
      setting: of the study.
      origin: which module.
      receiver: name of the host.
      task: the receiver's, whose texts hidden states are measured on.
      trained: the origins' modules.
    """
    route = route_of(setting, origin.host, receiver, task)
    return port_along(
        route, trained[origin].module, magnitude=setting.config.port.magnitude
    )


def route_of(setting: Setting, origin: str, receiver: str, task: str) -> Route:
    """The way from one host to another, found once.

    Args:
      setting: of the study.
      origin: name of the modules' host.
      receiver: name of the host.
      task: the receiver's, whose texts hidden states are measured on.
    """
    options = setting.config.port
    method, depth = way_between(
        setting.config, setting.hosts[origin].config, setting.hosts[receiver].config
    )

    def found() -> Route:
        source, target = setting.host(origin), setting.host(receiver)
        if PORTS[method].needs == "states":
            source = with_states(setting, origin, receiver, task)
            target = with_states(setting, receiver, origin, task)
        more = options.options.to_dict()
        return route_between(source, target, method, depth=depth, **more)

    return setting.once(("route", origin, receiver, task), found)


def check_ports(setting: Setting, cells: Sequence[Cell]) -> None:
    """Raises ValueError with every technique that cannot go from host to host.

    An untrained module of each goes every way, and one is made on the receiver, where
    its targets may be missing, before anything is trained.
    """
    ways = dict.fromkeys(
        (cell.technique, lane.host, cell.host, cell.task)
        for cell in cells
        for lane in cell.lanes
    )
    wrong = []
    for technique, origin, receiver, task in ways:
        peft = peft_config(setting.config, technique)
        try:
            module = init_module(
                peft, setting.whole(origin, task, 0), module_key(0, technique)
            )
            port_along(route_of(setting, origin, receiver, task), module)
        except (ValueError, trees.TreeMismatch) as error:
            wrong.append(f"{technique}, {origin}:{receiver}: {error}")
        try:
            jax.eval_shape(
                lambda host, key, peft=peft: init_module(peft, host, key).params,
                setting.whole(receiver, task, 0),
                module_key(0, technique),
            )
        except ValueError as error:
            wrong.append(f"{technique}, on {receiver}: {error}")
    if wrong:
        raise ValueError("portability:\n" + "\n".join(dict.fromkeys(wrong)))


def way_between(
    config: Any, source: EncoderConfig, target: EncoderConfig
) -> tuple[str, str]:
    """(method, rule for layers) between two hosts, by `port` of the config."""
    options = config.port
    if options.method != "auto":
        return options.method, options.depth

    def widths(of: EncoderConfig) -> tuple[int, ...]:
        return of.hidden_size, of.num_heads, of.intermediate_size

    if widths(source) != widths(target):
        return options.width, options.depth
    if source.num_layers != target.num_layers:
        return options.depth, options.depth
    return "copy", options.depth


def origin_of(cell: Cell, lane: Lane) -> Origin:
    """What a lane of a cell begins from."""
    return Origin(cell.technique, lane.host, lane.task, cell.seed)
