"""What porting is told of a host, and which sizes a module meets in it."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fusion_jax import trees
from fusion_jax.peft.port_leaves import INNER_HEAD
from fusion_jax.types import Params

LAYER = re.compile(r"(.*?)layer_(\d+)/(.*)")
"""'encoder/layer_3/mlp/up/lora/a' -> ('encoder/', '3', 'mlp/up/lora/a')."""


class Seen(NamedTuple):
    """A linear layer over the tokens that two hosts share.

    Attributes:
      x: its input [N, in] float32; row n is the same token in every host.
      y: its output [N, out] float32.
    """

    x: np.ndarray
    y: np.ndarray


class Host(NamedTuple):
    """A pretrained model as porting sees it.

    Attributes:
      params: {'encoder': ...}; only shapes are read but for the methods that say so.
      num_layers: L.
      num_heads: H of an attention layer.
      record: what a module says of its host: family, hidden_size, num_layers, sha256,
        name.
      states: layer path ('encoder/layer_0/attention/query') -> `Seen`; empty where
        nothing was measured.
    """

    params: Params
    num_layers: int
    num_heads: int
    record: Mapping[str, Any] = {}
    states: Mapping[str, Seen] = {}

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return str(self.record.get("name") or "the host")


def place_in(host: Host, path: str, side: str) -> tuple[str, str]:
    """Where a side of a layer is found among the layers of a host.

    A head is no part of a host: what it reads is what the pooler, or the last layer,
    writes; the pooler is read by no head with a layer of its own.

    Args:
      host: of the layer.
      path: of the layer.
      side: 'in' or 'out'.
    """
    if not path.startswith("head/") or side == "out":
        return path, side
    if "pooler" in host.params["encoder"] and not re.fullmatch(INNER_HEAD, path):
        return "encoder/pooler", "out"
    return f"encoder/layer_{host.num_layers - 1}/mlp/down", "out"


def size_of(host: Host, path: str, side: str) -> int | None:
    """The width of a side of a layer; None where the host has no such layer.

    Args:
      host: of the layer.
      path: of a linear layer, a table (in: rows) or a norm (in and out: its width).
      side: 'in' or 'out'.
    """
    path, side = place_in(host, path, side)
    node: Any = host.params
    for part in path.split("/"):
        if part not in node:
            return None
        node = node[part]
    for leaf in ("kernel", "embedding"):
        if leaf in node:
            return int(np.shape(node[leaf])[0 if side == "in" else -1])
    return int(np.shape(node["scale"])[-1]) if "scale" in node else None


def kernel_of(host: Host, path: str) -> np.ndarray | None:
    """The kernel [in, out] of a layer in float64, or a table's rows; None if absent."""
    leaves = trees.flatten(host.params)
    for leaf in ("kernel", "embedding"):
        if f"{path}/{leaf}" in leaves:
            return np.asarray(leaves[f"{path}/{leaf}"], np.float64)
    return None
