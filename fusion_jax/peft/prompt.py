"""Prompt tuning: trained rows before the words of the text, [P; X]."""

from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax.peft.config import PeftConfig, length_of
from fusion_jax.peft.leaves import at, in_front, uniform
from fusion_jax.peft.places import FAMILIES, family_of
from fusion_jax.trees import unflatten
from fusion_jax.types import Around, Key, Params

OWNS = r".*/prompt/rows"


def init(config: PeftConfig, host: Params, key: Key) -> Params:
    """Rows [L, D]: default U(+-0.5); vocabulary: of the word table, drawn with return.

    Args:
      config: of kind prompt.
      host: tree of arrays or shapes; values are read by 'vocabulary' alone.
      key: of the draw.

    Returns:
      Tree of the one leaf, float32.
    """
    path = FAMILIES[family_of(host)].word
    name, length = f"{path}/prompt/rows", length_of(config)
    table = at(host, f"{path}/embedding")
    if table is None:
        raise ValueError(f"prompt: the host has no table {path}/embedding")
    if config.init == "vocabulary":
        ids = jax.random.randint(key, (length,), 0, table.shape[0])
        rows = jnp.take(jnp.asarray(table, jnp.float32), ids, axis=0)
    else:
        rows = uniform(key, name, (length, table.shape[1]), 0.5)
    return unflatten({name: rows})


def around(
    config: PeftConfig, params: Params, dropout_key: Key | None = None
) -> Around:
    """The hook: the lookup of words is longer; they take the first positions.

    Where the head reads the first token it reads the first of these, as torch peft
    has it; what is said of every token is said of the text's alone.

    Reference: Lester et al. 2021, arXiv 2104.08691.
    """
    del config, dropout_key

    def hook(name: str, call: Any, x: jax.Array) -> jax.Array:
        own = at(params, f"{name}/prompt")
        y = call(x)
        return y if own is None else in_front(own["rows"], y)

    return hook
