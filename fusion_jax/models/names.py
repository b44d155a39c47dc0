"""Leaf names between Hugging Face files and our trees, derived from the tables."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.tables import bert, distilbert, gpt2, roberta

TABLES: Mapping[str, ModuleType] = {
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "gpt2": gpt2,
}

# kind of module -> (file suffix, our leaf, transform); a transform is its own inverse.
_LEAVES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "linear": (("weight", "kernel", "transpose"), ("bias", "bias", "identity")),
    "linear_without_bias": (("weight", "kernel", "transpose"),),
    # GPT-2 keeps its linear layers as [in, out], as our trees do.
    "conv1d": (("weight", "kernel", "identity"), ("bias", "bias", "identity")),
    "norm": (("weight", "scale", "identity"), ("bias", "bias", "identity")),
    "embedding": (("weight", "embedding", "identity"),),
}
TRANSFORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    # torch keeps a linear layer as [out, in], our trees as [in, out].
    "transpose": lambda x: np.ascontiguousarray(x.T),
}


class Entry(NamedTuple):
    """One tensor of a file and the leaf it becomes.

    Attributes:
      source: name in the file.
      leaf: name in our tree.
      transform: key of `TRANSFORMS`, the same in both directions.
    """

    source: str
    leaf: str
    transform: str


def encoder_entries(config: EncoderConfig, *, prefixed: bool) -> list[Entry]:
    """Every tensor of the encoder, pooler included.

    Args:
      config: the encoder.
      prefixed: whether names start with the base model's ('bert.', 'transformer.'), as
        they do in files with a head.

    Returns:
      One entry a leaf, in the order of the table, layer by layer.
    """
    table = TABLES[config.family]
    prefix = f"{table.BASE}." if prefixed else ""
    entries = []
    for source, leaf, kind in table.ENCODER:
        layers = range(config.num_layers) if "{i}" in source else (0,)
        for i in layers:
            entries += _expand(prefix + source.format(i=i), leaf.format(i=i), kind)
    if config.type_vocab_size == 0:
        entries = [e for e in entries if "/token_type/" not in e.leaf]
    return entries


def head_entries(config: EncoderConfig, kind: str) -> list[Entry]:
    """Every tensor of the head of a kind of task; none where HF has no such class."""
    entries = []
    for source, leaf, module in TABLES[config.family].HEADS[kind]:
        entries += _expand(source, leaf, module)
    return entries


def kinds_of_architecture(family: str, architecture: str) -> tuple[str, ...]:
    """The kinds a Hugging Face class stands for; a bare encoder stands for none."""
    table = TABLES[family]
    return tuple(
        kind
        for kind, name in table.ARCHITECTURES.items()
        if name == architecture and table.HEADS[kind]
    )


def module_leaves(kind: str) -> tuple[tuple[str, str, str], ...]:
    """(suffix in files, our leaf, transform) of each leaf of a kind of module."""
    return _LEAVES[kind]


def _expand(source: str, leaf: str, kind: str) -> list[Entry]:
    return [
        Entry(f"{source}.{suffix}", f"{leaf}/{name}", transform)
        for suffix, name, transform in _LEAVES[kind]
    ]
