"""The keys of a mergekit file that say what becomes of the vocabulary."""

from collections.abc import Mapping
from typing import Any

from fusion_jax.checkpoints.mergekit.reference import read_model
from fusion_jax.checkpoints.mergekit.yaml import Path, Reading

_KINDS = ("zero", "model_token")


def read_tokenizer(data: Mapping[str, Any], reading: Reading) -> dict[str, Any] | None:
    """`tokenizer_source` or `tokenizer`, in one form.

    Args:
      data: the top level of the file.
      reading: receives faults.

    Returns:
      None where the file has neither; else source ('union', 'base' or a model as the
      file writes it), pad_to_multiple_of (None or int) and tokens, token -> {source,
      force}, with the source None, a model, {kind: 'zero'} or {kind: 'model_token',
      model, token_id or token}.
    """
    options, source = data.get("tokenizer"), data.get("tokenizer_source")
    if options is not None and source is not None:
        reading.fault(
            ("tokenizer",), "tokenizer and tokenizer_source are both given; keep one"
        )
        return None
    if source is not None:
        here: Path = ("tokenizer_source",)
        return {
            "source": _model(source, here, reading),
            "pad_to_multiple_of": None,
            "tokens": {},
        }
    if options is None:
        return None
    here = ("tokenizer",)
    if not isinstance(options, dict):
        reading.fault(here, "has to be a mapping; for a source alone: tokenizer_source")
        return None
    reading.check_keys(options, ("source", "pad_to_multiple_of", "tokens"), here)
    pad = options.get("pad_to_multiple_of")
    if pad is not None and (type(pad) is not int or pad < 1):
        reading.fault((*here, "pad_to_multiple_of"), f"{pad!r} is no positive number")
    tokens = options.get("tokens") or {}
    if not isinstance(tokens, dict):
        reading.fault((*here, "tokens"), "has to be a mapping, token -> {source: ...}")
        tokens = {}
    return {
        "source": _model(options.get("source", "union"), (*here, "source"), reading),
        "pad_to_multiple_of": pad,
        "tokens": {
            token: _token(said, (*here, "tokens", token), reading)
            for token, said in tokens.items()
        },
    }


def _token(data: Any, path: Path, reading: Reading) -> dict[str, Any]:
    if not isinstance(data, dict):
        reading.fault(path, "has to be a mapping with source")
        return {"source": None, "force": False}
    reading.check_keys(data, ("source", "force"), path)
    force = data.get("force", False)
    if not isinstance(force, bool):
        reading.fault((*path, "force"), f"{force!r} is not true or false")
    source, here = data.get("source"), (*path, "source")
    if source is None:
        reading.fault(path, "has no source")
    elif not isinstance(source, dict) or "kind" not in source:
        source = _model(source, here, reading)
    elif source["kind"] == "zero":
        reading.check_keys(source, ("kind",), here)
    elif source["kind"] == "model_token":
        source = _model_token(source, here, reading)
    else:
        reading.fault(here, f"kind '{source['kind']}' is not one of {_KINDS}")
    return {"source": source, "force": force}


def _model_token(data: dict[str, Any], path: Path, reading: Reading) -> dict[str, Any]:
    reading.check_keys(data, ("kind", "model", "token_id", "token"), path)
    number, token = data.get("token_id"), data.get("token")
    if (number is None) == (token is None):
        reading.fault(path, "exactly one of token_id and token has to be given")
    elif number is not None and (type(number) is not int or number < 0):
        reading.fault((*path, "token_id"), f"{number!r} is no row of a vocabulary")
    found = {
        "kind": "model_token",
        "model": _model(data.get("model"), (*path, "model"), reading),
    }
    return found | ({"token": str(token)} if number is None else {"token_id": number})


def _model(data: Any, path: Path, reading: Reading) -> str:
    found = read_model(data, path, reading)
    if found is None and data is None:
        reading.fault(path, "names no model")
    return found or ""
