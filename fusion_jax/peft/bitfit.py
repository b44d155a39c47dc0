"""BitFit: the biases of the layers are trained, and nothing else."""

from typing import Any

import jax

from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.places import FAMILIES, family_of
from fusion_jax.types import Around, Key, Params


def init(config: PeftConfig, host: Params, key: Key) -> Params:
    """No leaf of its own: the biases start from the host's.

    Raises:
      ValueError: the family has no biases.
    """
    del key
    if not config.targets:
        family = family_of(host)
        if not FAMILIES[family].biases:
            raise ValueError(f"bitfit: {family} has no biases; choose another kind")
    return {}


def replaced(config: PeftConfig) -> str:
    """The biases of the layers: query, key, value, up, down, output, and norms."""
    if config.targets:
        either = "|".join(f"(?:{pattern})" for pattern in config.targets)
        return rf"(?:.*/)?(?:{either})/bias"
    return r"encoder/layer_\d+/.*/bias"


def around(
    config: PeftConfig, params: Params, dropout_key: Key | None = None
) -> Around:
    """No hook: the layers have the trained biases for their own.

    Reference: Ben Zaken et al. 2021, arXiv 2106.10199.
    """
    del config, params, dropout_key

    def hook(name: str, call: Any, x: jax.Array) -> jax.Array:
        del name
        return call(x)

    return hook


def merge(config: PeftConfig, host: Params, params: Params) -> Params:
    """The host, whose biases were replaced already."""
    del config, params
    return host
