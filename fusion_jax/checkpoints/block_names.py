"""Where the repeated blocks of a model are, found in the names of its tensors."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_USUAL = {"layers", "layer", "h", "block", "blocks"}
_MANY = 4  # tensors that all blocks share, where the name says nothing

# Looked for in this order among the tensors outside the blocks.
_LAST = re.compile(r"embed_out|lm_head|(^|\.)(norm|ln_f|final_layer_?norm)\.")
_FIRST = re.compile(r"embed|wte|wpe|tok_|patch|shared|project_in|rotary")

_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")
_EMBEDDING = re.compile(
    r"(.*\.)?(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|shared)\.weight"
)


class Place(NamedTuple):
    """A tensor inside a block: '{stack}.{block}.{rest}'.

    Attributes:
      stack: 'model.layers'.
      block: from 0.
      rest: 'mlp.down_proj.weight'.
    """

    stack: str
    block: int
    rest: str


def stacks_of(names: Iterable[str]) -> dict[str, int]:
    """The stacks of blocks among tensor names.

    A stack is what stands before a number between dots that runs from 0 without a gap:
    under a usual name (layers, layer, h, block, blocks), or over at least two blocks
    which share at least four tensors. The outermost number of a name counts.

    Args:
      names: of all tensors of a model.

    Returns:
      prefix -> number of blocks: {'encoder.block': 6, 'decoder.block': 6}.
    """
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    names = list(names)
    for name in names:
        for place in _places(name):
            found[place.stack][place.block].add(place.rest)
    possible = {
        prefix: len(blocks)
        for prefix, blocks in found.items()
        if set(blocks) == set(range(len(blocks)))
        and (
            prefix.rpartition(".")[2] in _USUAL
            or (len(blocks) > 1 and len(set.intersection(*blocks.values())) >= _MANY)
        )
    }
    outermost = {
        place.stack
        for place in (place_of(name, possible) for name in names)
        if place is not None
    }
    return {
        prefix: length for prefix, length in possible.items() if prefix in outermost
    }


def place_of(name: str, stacks: Mapping[str, int]) -> Place | None:
    """The block a tensor is in; None outside the blocks."""
    return next((place for place in _places(name) if place.stack in stacks), None)


def comes_first(name: str) -> bool:
    """Whether a tensor outside the blocks is before them, as an embedding is."""
    return not _LAST.search(name) and bool(_FIRST.search(name))


def is_head(name: str) -> bool:
    """Whether a tensor may be tied to the embedding."""
    return bool(_HEAD.fullmatch(name))


def is_embedding(name: str) -> bool:
    """Whether a tensor is the table of the vocabulary's input embeddings."""
    return bool(_EMBEDDING.fullmatch(name))


def _places(name: str) -> Iterable[Place]:
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdecimal() and at:
            yield Place(".".join(parts[:at]), int(part), ".".join(parts[at + 1 :]))
