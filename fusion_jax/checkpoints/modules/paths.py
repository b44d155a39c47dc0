"""Names of a host's modules in torch and in our trees, one by one, from the tables.

A layer that no table knows (T5's, say) keeps its torch path with '/' for '.', so that
modules of any host can be read, merged and written again.
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from fusion_jax.models.names import TABLES, module_leaves

GENERIC = ""
"""The family of hosts without a name table."""


class Place(NamedTuple):
    """A module of a family, of every layer.

    Attributes:
      torch: its path below the base model, with '{i}' for the layer's number.
      ours: the layer path of our tree, likewise.
      kind: of `models.names`: linear, conv1d, embedding, norm, ...
      head: whether it belongs to a head, which stands beside the base model.
    """

    torch: str
    ours: str
    kind: str
    head: bool


@functools.cache
def places(family: str) -> tuple[Place, ...]:
    """Every module of a family, heads included; none for a generic host."""
    if family == GENERIC:
        return ()
    table = TABLES[family]
    heads = dict.fromkeys(entry for head in table.HEADS.values() for entry in head)
    return (
        *(Place(*entry, head=False) for entry in table.ENCODER),
        *(Place(*entry, head=True) for entry in heads),
    )


def layer_path(family: str, torch_path: str) -> tuple[str, Place | None] | None:
    """Our layer path of a torch module, and what the table says of it.

    Args:
      family: of `TABLES`, or `GENERIC`.
      torch_path: such as 'bert.encoder.layer.0.attention.self.query', with the base
        model's name or without.

    Returns:
      The path and its entry (None of a generic host); None where the table has none.
    """
    if family == GENERIC:
        return torch_path.replace(".", "/"), None
    bare = torch_path.removeprefix(f"{TABLES[family].BASE}.")
    for place in places(family):
        if place.head and bare != torch_path:
            continue
        found = _pattern(place.torch).fullmatch(bare)
        if found:
            return _filled(place.ours, found), place
    return None


def torch_path(
    family: str, path: str, *, kind: str | None = None
) -> tuple[str, Place | None]:
    """The inverse: the torch path below the base model, and the table's entry.

    Args:
      family: see `layer_path`.
      path: ours.
      kind: of the head, which decides what its layers are called.

    Raises:
      KeyError: the family has no such layer.
    """
    if family == GENERIC:
        return path.replace("/", "."), None
    own = TABLES[family].HEADS[kind] if kind else ()
    for place in (*(Place(*entry, head=True) for entry in own), *places(family)):
        found = _pattern(place.ours).fullmatch(path)
        if found:
            return _filled(place.torch, found), place
    raise KeyError(path)


def leaf_of_tensor(family: str, tensor: str) -> tuple[str, str] | None:
    """(leaf, transform) of a whole tensor of the host, such as 'classifier.weight'."""
    module, _, suffix = tensor.rpartition(".")
    found = layer_path(family, module)
    if found is None:
        return None
    path, place = found
    if place is None:
        return f"{path}/{suffix}", "identity"
    for name, leaf, transform in module_leaves(place.kind):
        if name == suffix:
            return f"{path}/{leaf}", transform
    return None


def tensor_of_leaf(
    family: str, leaf: str, *, kind: str | None = None
) -> tuple[str, str]:
    """The inverse: (torch name below the base model, transform); see `torch_path`.

    Raises:
      KeyError: the family has no such leaf.
    """
    path, _, own = leaf.rpartition("/")
    module, place = torch_path(family, path, kind=kind)
    if place is None:
        return f"{module}.{own}", "identity"
    for name, ours, transform in module_leaves(place.kind):
        if ours == own:
            return f"{module}.{name}", transform
    raise KeyError(leaf)


def with_base(family: str, module: str, *, prefixed: bool) -> str:
    """A torch path as a class with a head has it: 'bert.' before the base's modules."""
    if family == GENERIC or not prefixed:
        return module
    heads = any(
        place.head and (module == place.torch or module.startswith(f"{place.torch}."))
        for place in places(family)
    )
    return module if heads else f"{TABLES[family].BASE}.{module}"


def kind_of_head(family: str, leaves: Iterable[str]) -> str | None:
    """The first kind of task whose head consists of these layers, if there is one."""
    paths = {leaf.rpartition("/")[0] for leaf in leaves if leaf.startswith("head/")}
    if family == GENERIC or not paths:
        return None
    for kind, entries in TABLES[family].HEADS.items():
        if paths == {ours for _, ours, _ in entries}:
            return kind
    return None


def families_of(modules: Iterable[str]) -> list[str]:
    """The families that know all these torch modules; prefixed names know their own."""
    modules = list(modules)
    if not modules:
        return []
    known = [
        family
        for family in TABLES
        if all(layer_path(family, module) is not None for module in modules)
    ]
    named = [
        family
        for family in known
        if any(module.startswith(f"{TABLES[family].BASE}.") for module in modules)
    ]
    return named or known


def layer_number(path: str) -> int | None:
    """The number of the layer that one of our paths lies in, if it lies in one."""
    found = re.match(r"encoder/layer_(\d+)/", path)
    return int(found[1]) if found else None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(re.escape("{i}"), r"(?P<i>\d+)"))


def _filled(template: str, found: re.Match[str]) -> str:
    return template.format(**found.groupdict())
