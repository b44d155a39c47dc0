"""The layer that a tensor belongs to, from its name alone, for any architecture."""

import re
from collections.abc import Sequence

EMBEDDINGS, NORM, HEAD, OTHER = "embeddings", "norm", "head", "other"

# Full words of a name's parts: 'lm_head' is a head, 'multihead' is none.
_HEAD = re.compile(
    r"(^|[._])(lm_head|heads?|classifiers?|score|qa_outputs|cls|pooler|pre_classifier"
    r"|embed_out|output_projection|predictions?|vocab_\w+)([._]|$)"
)
_EMBEDDINGS = re.compile(r"embed|(^|\.)(wte|wpe|shared|word_emb\w*)(\.|$)", re.I)
_NORM = re.compile(r"norm|(^|[._])ln(_\w+)?([._]|$)", re.I)
_BLOCK = re.compile(r"^(?P<stack>.*?[^.\d][^.]*)\.(?P<number>\d+)(\.|$)")
_PLACE = {EMBEDDINGS: -1, NORM: 1, HEAD: 2, OTHER: 3}


def layers_of(names: Sequence[str]) -> dict[str, str]:
    """Groups tensors by layer, in the order of computation.

    The first number that is a part of a name is the block's: encoder.layer.3.,
    model.layers.3., h.3. What has none is 'embeddings', 'norm', 'head' or 'other' by
    its words. A model of several stacks (encoder.block, decoder.block) has the
    stack's name before the number.

    Args:
      names: of tensors, in the order of the files.

    Returns:
      name -> group; groups come in the order embeddings, blocks, norm, head, other.
    """
    blocks: dict[str, tuple[str, int]] = {}
    words: dict[str, str] = {}
    for name in names:
        match = _BLOCK.match(name)
        # A head of several layers (classifier.0.weight) is numbered too.
        if match and not _HEAD.search(match["stack"]):
            blocks[name] = match["stack"], int(match["number"])
        else:
            words[name] = _word(name)
    stacks = list(dict.fromkeys(stack for stack, _ in blocks.values()))

    def group(name: str) -> str:
        if name in words:
            return words[name]
        stack, number = blocks[name]
        return f"layer {number}" if len(stacks) == 1 else f"{stack} {number}"

    def place(name: str) -> tuple[int, int, int]:
        if name in words:
            return _PLACE[words[name]], 0, 0
        stack, number = blocks[name]
        return 0, stacks.index(stack), number

    return {name: group(name) for name in sorted(names, key=place)}


def _word(name: str) -> str:
    if _HEAD.search(name):
        return HEAD
    if _EMBEDDINGS.search(name):
        return EMBEDDINGS
    return NORM if _NORM.search(name) else OTHER
