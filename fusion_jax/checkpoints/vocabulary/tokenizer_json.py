"""tokenizer.json as data: its tokens and their ids, and the same with more tokens."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints.tensors import CheckpointError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# The order in which transformers adds special tokens that tokenizer.json lacks.
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_LISTED = ("extra_special_tokens", "additional_special_tokens")


class _Repeated(dict):
    """A JSON object that remembers keys which stood in it more than once."""

    repeated: tuple[str, ...] = ()


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
      CheckpointError: there is no such file, or it holds something else.
    """
    try:
        values = json.loads(
            file.read_text(encoding="utf-8"), object_pairs_hook=_remembering
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is no JSON object; download it again")
    return values


def read_document(folder: Path) -> dict[str, Any]:
    """tokenizer.json of a folder, or what transformers would write as one.

    Raises:
      CheckpointError: there is none and none can be made of the other files.
    """
    if (folder / TOKENIZER).is_file():
        return read_object(folder / TOKENIZER)
    # transformers takes a second to import and is needed for old folders alone.
    from fusion_jax.data.tokenise import load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
        return json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # whatever a reader of foreign files may raise
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}, and no tokenizer can be made of what it has "
            f"({error}); copy the tokenizer files of the model it was trained from, or "
            "save its tokenizer there with save_pretrained of a recent transformers"
        ) from error


def tokens_of(
    folder: Path, document: Mapping[str, Any], extra: Sequence[str] = ()
) -> dict[str, int]:
    """Token -> id, as the tokenizers library numbers them.

    The model's tokens have the ids of the file. Added tokens that the model lacks are
    numbered from the size of the model up, whatever id the file says, and `extra` after
    the highest of them.

    Raises:
      CheckpointError: a token stands twice, two tokens have one id, or the document
        has no vocabulary; all are listed.
    """
    ids, faults = _model_tokens(document)
    size = len(ids)
    added = [str(entry["content"]) for entry in document.get("added_tokens") or ()]
    following = size
    for token in added:
        if token not in ids:
            ids[token] = following
            following += 1
    following = max([size, *(1 + ids[token] for token in added)])
    for token in extra:
        if token not in ids:
            ids[token] = following
            following += 1
    owners: dict[int, str] = {}
    for token, number in ids.items():
        if number in owners:
            faults.append(f"id {number} is both {owners[number]!r} and {token!r}")
        owners.setdefault(number, token)
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise CheckpointError(
            f"the tokenizer of {folder} gives no clear ids: {'; '.join(faults[:8])}"
            f"{more}; download its {TOKENIZER} again"
        )
    return ids


def added_flags(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tokens that are matched in raw text -> how."""
    return {
        str(entry["content"]): full_flags(entry)
        for entry in document.get("added_tokens") or ()
    }


def full_flags(given: Mapping[str, Any], special: bool = False) -> dict[str, Any]:
    """The five flags of an added token; those that are not given are off."""
    return {
        name: bool(given.get(name, special and name == "special")) for name in _FLAGS
    }


def configured_tokens(folder: Path) -> dict[str, dict[str, Any]]:
    """Tokens that tokenizer_config.json and its companions name -> their flags.

    transformers adds those that tokenizer.json lacks, in this order.
    """
    config = _optional(folder / CONFIG)
    found: dict[str, dict[str, Any]] = {}
    if "added_tokens_decoder" in config:
        listed = config["added_tokens_decoder"].items()
        for _, entry in sorted(listed, key=lambda item: int(item[0])):
            found[str(entry["content"])] = full_flags(entry)
    else:
        config |= _optional(folder / "special_tokens_map.json")
        numbered = _optional(folder / "added_tokens.json")
        for token in sorted(numbered, key=numbered.__getitem__):
            found[token] = full_flags({})
    named = [f"{name}_token" for name in _NAMED]
    others = [key for key in config if key.endswith("_token") and key not in named]
    entries = [config.get(key) for key in (*named, *others)]
    for key in _LISTED:
        value = config.get(key) or ()
        entries += value.values() if isinstance(value, dict) else value
    for entry in entries:
        token = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(token, str):
            given = entry if isinstance(entry, dict) else {}
            found.setdefault(token, full_flags(given, special=True))
            found[token]["special"] = True
    return found


def with_tokens(
    folder: Path,
    document: Mapping[str, Any],
    ids: Mapping[str, int],
    added: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The document with exactly these tokens, each under its id.

    All of them stand in the model's vocabulary, added ones too: only there the
    library takes the id that the file says.

    Args:
      folder: for the message.
      document: the donor's; its own tokens keep their ids.
      ids: token -> id.
      added: tokens that are matched in raw text -> their flags.

    Returns:
      A new document.

    Raises:
      CheckpointError: a list of pieces (Unigram) cannot leave ids free.
    """
    model = dict(document["model"])
    ordered = sorted(ids.items(), key=lambda item: item[1])
    if isinstance(model["vocab"], Mapping):
        model["vocab"] = dict(ordered)
    else:
        if [number for _, number in ordered] != list(range(len(ordered))):
            raise CheckpointError(
                f"the ids of {folder} have gaps, which a Unigram tokenizer with more "
                "tokens cannot have: take 'source: base'"
            )
        score = {token: value for token, value in model["vocab"]}
        # The lowest there is: unlikely pieces, but no new unknown penalty.
        lowest = min(score.values())
        model["vocab"] = [[token, score.get(token, lowest)] for token, _ in ordered]
    entries = [
        {"id": number, "content": token, **full_flags(added[token])}
        for token, number in ordered
        if token in added
    ]
    return {**document, "model": model, "added_tokens": entries}


def _model_tokens(document: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    model = document.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocab, Mapping):
        twice = getattr(vocab, "repeated", ())
        faults = [f"{token!r} stands twice" for token in twice]
        return {token: int(number) for token, number in vocab.items()}, faults
    if isinstance(vocab, list):
        ids: dict[str, int] = {}
        faults = []
        for number, (token, _) in enumerate(vocab):
            if token in ids:
                faults.append(f"{token!r} stands twice")
            ids[token] = number
        return ids, faults
    return {}, ["it has no model with a vocabulary"]


def _optional(file: Path) -> dict[str, Any]:
    return dict(read_object(file)) if file.is_file() else {}


def _remembering(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _Repeated(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        found.repeated = tuple(k for k, _ in pairs if k in seen or seen.add(k))
    return found
