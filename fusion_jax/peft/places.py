"""Where modules stand in each family of hosts: tables of patterns over layer paths."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fusion_jax import trees
from fusion_jax.peft.config import PeftConfig, matches
from fusion_jax.types import Params

LEAF = r"/(kernel|embedding|scale)"


class Places(NamedTuple):
    """The default places in one family.

    Attributes:
      signature: pattern of a path that this family has and the others have not.
      lora: layers with a low-rank product.
      ia3: layers that are scaled; feedforward: of them those by their input.
      attention_outputs: last layers of attentions, after which Houlsby adapters stand.
      feedforward_outputs: last layers of feed-forwards, after which adapters stand.
      pfeiffer: after what the one adapter stands. The norm after the feed-forward,
        where norms follow the sum: the adapter reads what is normed.
      prefix: (name of a group, pattern of its attentions with their number); a network
        that gives the rows of a prefix serves one group.
      biases: layers whose biases BitFit trains; empty = the family has none.
      word: path of the table whose lookup a prompt lengthens.
      norms: every norm.
    """

    signature: str
    lora: str
    ia3: str
    feedforward: str
    attention_outputs: str
    feedforward_outputs: str
    pfeiffer: str
    prefix: tuple[tuple[str, str], ...]
    biases: str
    word: str
    norms: str = r".*(^|/|_)norm"


FAMILIES: Mapping[str, Places] = {
    # BERT, RoBERTa, DistilBERT: norms after the sums.
    "encoder": Places(
        signature=r"encoder/layer_0/attention/query",
        lora=r"attention/(query|value)",
        ia3=r"attention/(key|value)|mlp/down",
        feedforward=r"mlp/down",
        attention_outputs=r"encoder/layer_\d+/attention/output",
        feedforward_outputs=r"encoder/layer_\d+/mlp/down",
        pfeiffer=r"encoder/layer_\d+/mlp/norm",
        prefix=(("encoder", r"encoder/layer_(\d+)/attention"),),
        biases=r"encoder/layer_\d+/.*",
        word=r"encoder/embeddings/word",
    ),
    # Query, key and value are one product: (IA)^3 scales all three, as peft does, and
    # there is no place for a prefix.
    "gpt2": Places(
        signature=r"encoder/layer_0/attention/qkv",
        lora=r"attention/qkv",
        ia3=r"attention/qkv|mlp/down",
        feedforward=r"mlp/down",
        attention_outputs=r"encoder/layer_\d+/attention/output",
        feedforward_outputs=r"encoder/layer_\d+/mlp/down",
        pfeiffer=r"encoder/layer_\d+/mlp/down",
        prefix=(),
        biases=r"encoder/layer_\d+/.*",
        word=r"encoder/embeddings/word",
    ),
    # Norms before the blocks; gate and up are wi_0 and wi_1, down is wo. Adapters do
    # not stand at cross-attention. No biases.
    "t5": Places(
        signature=r"decoder/layer_0/cross_attention/query",
        lora=r"(attention|cross_attention)/(query|value)",
        ia3=r"(attention|cross_attention)/(key|value)|mlp/down",
        feedforward=r"mlp/down",
        attention_outputs=r"(encoder|decoder)/layer_\d+/attention/output",
        feedforward_outputs=r"(encoder|decoder)/layer_\d+/mlp/down",
        pfeiffer=r"(encoder|decoder)/layer_\d+/mlp/down",
        prefix=(
            ("encoder_self", r"encoder/layer_(\d+)/attention"),
            ("decoder_self", r"decoder/layer_(\d+)/attention"),
            ("decoder_cross", r"decoder/layer_(\d+)/cross_attention"),
        ),
        biases="",
        word=r"encoder/embeddings/word",
    ),
}
"""family -> its places. A new family is one more row, before one whose signature it
shares."""


def paths_of(host: Params) -> dict[str, Any]:
    """Path of every layer, norm and table -> its kernel, scale or table."""
    found = {}
    for name, leaf in trees.flatten(host).items():
        path, _, last = name.rpartition("/")
        if last in ("kernel", "scale", "embedding") and path:
            found[path] = leaf
    return found


def family_of(host: Params) -> str:
    """The family of `FAMILIES` that a host is of, seen from its names.

    Raises:
      ValueError: none of them.
    """
    paths = paths_of(host)
    for family in ("t5", *(name for name in FAMILIES if name != "t5")):
        if any(re.fullmatch(FAMILIES[family].signature, path) for path in paths):
            return family
    raise ValueError(
        f"no family of {', '.join(FAMILIES)} has a host with the layers "
        f"{', '.join(list(paths)[:6])} ...: add a row to peft.places.FAMILIES, or name "
        "the module's targets"
    )


def chosen(
    config: PeftConfig, host: Params, default: str | None, *, norms: bool = False
) -> dict[str, Any]:
    """The targets of a config among the layers of a host.

    Args:
      config: its targets count, if it has any.
      host: tree of arrays or shapes.
      default: pattern of the family; None or '' = there is none.
      norms: whether a norm can be a target.

    Returns:
      path -> kernel, scale or table, in the order of the host.

    Raises:
      ValueError: a pattern that matches no layer; all of them are listed.
    """
    patterns = config.targets or ((default,) if default else ())
    layers = {
        path: leaf
        for path, leaf in paths_of(host).items()
        if norms or len(leaf.shape) > 1
    }
    return _matched(patterns, layers, config.kind)


def _matched(
    patterns: Iterable[str], layers: Mapping[str, Any], kind: str
) -> dict[str, Any]:
    patterns = tuple(patterns)
    idle = [
        pattern
        for pattern in patterns
        if not any(matches(pattern, path) for path in layers)
    ]
    if idle or not patterns:
        said = ", ".join(map(repr, idle)) or "none given"
        raise ValueError(
            f"{kind}: no layer of the host matches targets {said}; its layers are "
            f"{', '.join(list(layers)[:12])} ..."
        )
    return {
        path: leaf
        for path, leaf in layers.items()
        if any(matches(pattern, path) for pattern in patterns)
    }
