"""Prompt and prefix tuning between Hugging Face peft's files and our leaves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_jax.peft import PeftConfig

PROMPT_ROWS = "encoder/embeddings/word/prompt/rows"
_KEYS = ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads")


def read_prompt(
    values: Mapping[str, Any], rows: np.ndarray
) -> tuple[PeftConfig | None, dict[str, np.ndarray], list[str]]:
    """(config, leaves, faults) of a prompt.

    Args:
      values: of adapter_config.json.
      rows: [V, D], or [2 V, D] of an encoder-decoder, of which torch peft itself uses
        the first V.
    """
    faults = _key_faults(values, ("num_virtual_tokens", "token_dim"))
    if faults:
        return None, {}, faults
    length, width = values["num_virtual_tokens"], values["token_dim"]
    copies = values.get("num_transformer_submodules") or 1
    if rows.shape != (length * copies, width):
        return None, {}, [_shape_fault(rows, (length * copies, width))]
    config = PeftConfig(kind="prompt", length=length)
    return config, {PROMPT_ROWS: rows[:length]}, []


def read_prefix(
    values: Mapping[str, Any], rows: np.ndarray
) -> tuple[PeftConfig | None, dict[str, np.ndarray], list[str]]:
    """(config, leaves, faults) of a prefix in flat form.

    Args:
      values: of adapter_config.json.
      rows: [V, L * 2 * D]: for each layer the row of keys, then of values.
    """
    faults = _key_faults(values, _KEYS)
    if (values.get("num_transformer_submodules") or 1) != 1:
        faults.append(
            "num_transformer_submodules is not 1: peft gives such a prefix to the "
            "decoder alone, one block for two attentions, which no host here has"
        )
    if faults:
        return None, {}, faults
    length, width = values["num_virtual_tokens"], values["token_dim"]
    layers = values["num_layers"]
    if rows.shape != (length, layers * 2 * width):
        return None, {}, [_shape_fault(rows, (length, layers * 2 * width))]
    blocks = rows.reshape(length, layers, 2, width)
    leaves = {
        f"encoder/layer_{i}/attention/{name}/prefix/rows": np.ascontiguousarray(
            blocks[:, i, k]
        )
        for i in range(layers)
        for k, name in enumerate(("key", "value"))
    }
    config = PeftConfig(kind="prefix", length=length, shift_positions=True)
    return config, leaves, []


def prompt_rows(leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """The inverse of `read_prompt`, [V, D].

    Raises:
      ValueError: there are other leaves.
    """
    if list(leaves) != [PROMPT_ROWS]:
        raise ValueError(f"a prompt is {PROMPT_ROWS} alone, not {', '.join(leaves)}")
    return leaves[PROMPT_ROWS]


def prefix_rows(leaves: Mapping[str, np.ndarray], num_layers: int) -> np.ndarray:
    """The inverse of `read_prefix`, [V, L * 2 * D].

    Raises:
      ValueError: a layer has no rows, or there are other leaves (a prefix whose network
        is still there is made flat first).
    """
    wanted = [
        f"encoder/layer_{i}/attention/{name}/prefix/rows"
        for i in range(num_layers)
        for name in ("key", "value")
    ]
    if set(wanted) != set(leaves):
        differ = sorted(set(wanted) ^ set(leaves))
        raise ValueError(
            f"a prefix in peft's form has rows of every layer and nothing else; "
            f"{', '.join(differ[:6])} is missing or too many (make it flat first: "
            "peft.flat_prefix)"
        )
    blocks = np.stack([leaves[name] for name in wanted], axis=1)
    return np.ascontiguousarray(blocks.reshape(len(blocks), -1))


def virtual_values(
    kind: str, length: int, width: int, num_layers: int, num_heads: int
) -> dict[str, Any]:
    """The keys of adapter_config.json of a prompt or a prefix."""
    values = {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_transformer_submodules": 1,
    }
    if kind == "prompt":
        return {"peft_type": "PROMPT_TUNING", **values}
    own = {"encoder_hidden_size": width, "prefix_projection": False}
    return {"peft_type": "PREFIX_TUNING", **values, **own}


def _key_faults(values: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [
        f"{key} is {values.get(key)!r}, not a count"
        for key in keys
        if not isinstance(values.get(key), int) or values[key] < 1
    ]


def _shape_fault(rows: np.ndarray, wanted: tuple[int, ...]) -> str:
    return (
        f"prompt_embeddings has shape {rows.shape}, adapter_config.json says {wanted}"
    )
