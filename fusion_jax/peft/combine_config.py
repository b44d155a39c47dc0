"""What a merged module's config says: the places of all, and a scaling of 1."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fusion_jax import trees
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.low_rank import own_leaves
from fusion_jax.peft.module import Module


def plain(configs: Sequence[PeftConfig], ranks: Mapping[str, int]) -> PeftConfig:
    """A LoRA with scaling 1 in every layer, whatever its rank.

    Args:
      configs: of the modules that went in.
      ranks: layer path -> rank.
    """
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else configs[0].rank
    others = tuple((re.escape(path), r) for path, r in ranks.items() if r != rank)
    return dataclasses.replace(
        joined(configs, ()),
        targets=tuple(map(re.escape, ranks)),
        rank=rank,
        alpha=float(rank),
        rank_pattern=others,
        alpha_pattern=tuple((path, float(r)) for path, r in others),
        use_rslora=False,
        use_dora=False,
        init="default",
    )


def joined(configs: Sequence[PeftConfig], own: Iterable[str]) -> PeftConfig:
    """The first config, with what any of them replaces and the places of all.

    Args:
      configs: of the modules that went in.
      own: names of the merged leaves, but for those that the host has.
    """
    replaces = dict.fromkeys(x for config in configs for x in config.replaces)
    config = dataclasses.replace(
        configs[0],
        replaces=tuple(replaces),
        train_norms=any(config.train_norms for config in configs),
    )
    return placed(config, own)


def without(module: Module, pattern: str) -> Module:
    """A module without leaves whose name matches in full; its config says so."""
    left, rest = trees.partition(module.params, pattern)
    if not trees.flatten(left):
        return module
    module = module._replace(params=rest)
    own, replaced = own_leaves(module)
    config = dataclasses.replace(
        placed(module.config, own),
        replaces=tuple(map(re.escape, replaced)),
        train_norms=False,
    )
    return module._replace(config=config)


def placed(config: PeftConfig, own: Iterable[str]) -> PeftConfig:
    """Targets by name, of the kinds whose places may be any: lora and ia3.

    Args:
      config: of a module.
      own: names of its own leaves.
    """
    own = list(own)
    if config.kind not in ("lora", "ia3") or not own:
        return config
    paths = dict.fromkeys(name.rsplit("/", 2)[0] for name in own)
    inner = [n.rsplit("/", 2)[0] for n in own if n.endswith("/ia3/input_scale")]
    return dataclasses.replace(
        config,
        targets=tuple(map(re.escape, paths)),
        # A pattern that matches nothing: empty means the family's own.
        feedforward=tuple(map(re.escape, inner)) or _NONE[config.kind],
    )


_NONE = {"lora": (), "ia3": (r"(?!)",)}
