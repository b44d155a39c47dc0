"""The spaces in which the sides of layers lie, and what measures each."""

import re
from typing import NamedTuple

import numpy as np

from fusion_jax.peft.port_host import LAYER, Host, place_in
from fusion_jax.peft.port_maps import NoMeaning

STREAM, HEADS_QK, HEADS_VALUE, INNER = "stream", "query_key", "value", "inner"
OWN = "own"
"""A space that one side of one layer has for itself, such as the pooler's output."""

# Layer path -> spaces of its input and output. Queries and keys meet in a product, so
# they share a space; what the output layer of an attention reads are values.
_SPACES: tuple[tuple[str, str, str], ...] = (
    (r".*/attention/(query|key)", STREAM, HEADS_QK),
    (r".*/attention/value", STREAM, HEADS_VALUE),
    (r".*/attention/output", HEADS_VALUE, STREAM),
    (r".*/mlp/up", STREAM, INNER),
    (r".*/mlp/down", INNER, STREAM),
    (r".*norm", STREAM, STREAM),
    (r"encoder/embeddings/\w+", OWN, STREAM),
    (r"encoder/pooler", STREAM, OWN),
    (r"head/\w+", STREAM, OWN),
)
PROBES = {
    HEADS_QK: (("attention/query", "out"), ("attention/key", "out")),
    HEADS_VALUE: (("attention/value", "out"),),
    INNER: (("mlp/down", "in"),),
    STREAM: (("attention/query", "in"), ("mlp/up", "in")),
}
"""Space -> (path within a layer, side) of what was seen of it."""


class Space(NamedTuple):
    """Where a side of a layer lies.

    Attributes:
      kind: of `PROBES`, or `OWN`.
      pair: (receiver's layer, origin's layer); None for the stream, which is one
        through all layers.
      path, side: of the side itself, in the receiver.
      source_path: the same layer in the origin.
    """

    kind: str
    pair: tuple[int, int] | None
    path: str
    side: str
    source_path: str


def space_of(
    target: Host, source: Host, path: str, source_path: str, side: str
) -> Space:
    """The space of a side of a layer.

    Raises:
      NoMeaning: porting between widths does not know the layer.
    """
    path, own_side = place_in(target, path, side)
    source_path, side = place_in(source, source_path, side)
    for pattern, inner, outer in _SPACES:
        if re.fullmatch(pattern, path):
            kind = inner if own_side == "in" else outer
            layer, origin = LAYER.fullmatch(path), LAYER.fullmatch(source_path)
            pair = None
            if kind != STREAM and layer and origin:
                pair = int(layer[2]), int(origin[2])
            return Space(kind, pair, path, own_side, source_path)
    raise NoMeaning(
        f"{path}: which space its {side} side lies in is not known, so it cannot be "
        "ported between widths"
    )


def seen(host: Host, path: str, side: str) -> np.ndarray:
    """What was measured at a side of a layer, [N, d] float64.

    Raises:
      ValueError: nothing was measured there.
    """
    found = host.states.get(path)
    if found is None:
        raise ValueError(
            f"{path}: no hidden states of {host.name}; measure both hosts on shared "
            "tokens, or choose a method that needs none"
        )
    return np.asarray(found.x if side == "in" else found.y, np.float64)
