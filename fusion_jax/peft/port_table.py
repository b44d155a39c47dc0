"""The methods of porting by name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fusion_jax.peft.port_correlation import Pairs, correlation_maps
from fusion_jax.peft.port_host import Host
from fusion_jax.peft.port_maps import Maps
from fusion_jax.peft.port_ridge import ridge_maps
from fusion_jax.peft.port_subspace import subspace_maps


class Port(NamedTuple):
    """A way from one host to another.

    Attributes:
      what: one line on what it does.
      needs: of the hosts: 'shapes', 'weights' or 'states'.
      depth: the rule for layers: 'equal' (none are left out or added), 'skip',
        'average', or 'any' (the caller says which).
      maps: `(source, target, pairs, **options) -> Maps`; None where widths must be
        equal.
      options: name -> default of what `maps` takes beside.
      reference: where it is from.
    """

    what: str
    needs: str
    depth: str
    maps: Callable[..., Maps] | None
    options: Mapping[str, Any]
    reference: str


def _subspace(source: Host, target: Host, pairs: Pairs, **options: Any) -> Maps:
    del pairs
    return subspace_maps(source, target, **options)


_KLIMASZEWSKI = "Klimaszewski et al. 2024, arXiv 2403.18804"

PORTS: dict[str, Port] = {
    "copy": Port(
        "leaf by leaf between hosts of equal shapes",
        "shapes",
        "equal",
        None,
        {},
        "Sabry and Belz 2024, arXiv 2401.14228",
    ),
    "skip": Port(
        "each layer takes one of the origin's", "shapes", "skip", None, {},
        _KLIMASZEWSKI,
    ),
    "average": Port(
        "each layer takes the mean of a group of the origin's",
        "shapes",
        "average",
        None,
        {},
        _KLIMASZEWSKI,
    ),
    "correlation": Port(
        "dimensions matched by what they say of shared tokens",
        "states",
        "any",
        correlation_maps,
        {},
        _KLIMASZEWSKI,
    ),
    "ridge": Port(
        "a linear map between hidden states, around the matching of 'correlation'",
        "states",
        "any",
        ridge_maps,
        {"ridge": 0.1},
        "fusion_jax",
    ),
    "subspace": Port(
        "leading singular directions of the hosts' layers turned into each other",
        "weights",
        "any",
        _subspace,
        {"rank": 64},
        "after Cross-LoRA 2025, arXiv 2508.05232",
    ),
}  # fmt: skip
"""name -> Port; add a way by a line here."""


def port_named(name: str) -> Port:
    """The entry of a method.

    Raises:
      ValueError: there is none; the names are listed.
    """
    if name not in PORTS:
        raise ValueError(f"port: '{name}' is unknown; there are {', '.join(PORTS)}")
    return PORTS[name]
