"""Vocabularies out of tokenizer files, and tokenizer files of a merged vocabulary."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.checkpoints.vocabulary.chat_template import write_template
from fusion_jax.checkpoints.vocabulary.tokenizer_json import (
    CONFIG,
    TOKENIZER,
    added_flags,
    configured_tokens,
    full_flags,
    read_document,
    read_object,
    tokens_of,
    with_tokens,
)
from fusion_jax.checkpoints.vocabulary.union import Alignment, Vocabulary

# What a tokenizer may consist of beside tokenizer.json. The first group holds ids and
# is wrong as soon as there are other tokens.
_VOCABULARY_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tekken.json",
    "*.model",
    "*.tiktoken",
)
_OTHER_FILES = (
    CONFIG,
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "tokenization_*.py",
)
# Layers whose first axis is the vocabulary, by the name of the module that owns them.
_MODULES = re.compile(
    r"(.*\.)?(embed_tokens|lm_head|wte|(tok|word)_embeddings?|shared|embed_in|embed_out"
    r"|(cls\.)?predictions(\.decoder)?|lm_head\.decoder|vocab_projector"
    r"|generator_lm_head|(backbone|model)\.embeddings?)|decoder|output"
)


def read_vocabularies(models: Mapping[str, Path]) -> dict[str, Vocabulary]:
    """The vocabularies of model folders; nothing is fetched.

    Args:
      models: label -> folder.

    Returns:
      label -> vocabulary, in the same order.

    Raises:
      CheckpointError: as `read_vocabulary`, for all folders at once.
    """
    found, faults = {}, []
    for label, folder in models.items():
        try:
            found[label] = read_vocabulary(folder)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError("\n".join(faults))
    return found


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokens of a model folder, as transformers numbers them.

    They are read from tokenizer.json, with the special tokens that only
    tokenizer_config.json names. Without tokenizer.json the other tokenizer files are
    read through transformers.

    Args:
      folder: of the model.

    Returns:
      The vocabulary.

    Raises:
      CheckpointError: no tokenizer, files that cannot be read, a token that stands
        twice, or two tokens with one id.
    """
    document = read_document(folder)
    configured = configured_tokens(folder)
    ids = tokens_of(folder, document, list(configured))
    inside = tokens_of(folder, document)
    added = added_flags(document)
    added |= {t: flags for t, flags in configured.items() if t not in inside}
    file = folder / "config.json"
    config = read_object(file) if file.is_file() else {}
    text = config.get("text_config")
    rows = config.get("vocab_size") or (
        text.get("vocab_size") if isinstance(text, dict) else None
    )
    ordered = dict(sorted(ids.items(), key=lambda item: item[1]))
    return Vocabulary(folder, ordered, added, rows if type(rows) is int else None)


def vocabulary_tensors(checkpoint: LazyCheckpoint, vocab_size: int) -> set[str]:
    """Names of the tensors whose first axis is the vocabulary.

    Args:
      checkpoint: of the model.
      vocab_size: the model's, as its config.json says it.

    Returns:
      Embeddings, output heads and their biases: by name, with shape [vocab_size] or
      [vocab_size, width].
    """
    found = set()
    for name, info in checkpoint.tensors.items():
        module, _, leaf = name.rpartition(".")
        if (
            leaf in ("weight", "bias")
            and len(info.shape) in (1, 2)
            and info.shape[0] == vocab_size
            and _MODULES.fullmatch(module)
        ):
            found.add(name)
    return found


def write_tokenizer(
    alignment: Alignment,
    donor: Path,
    vocabularies: Mapping[str, Vocabulary],
    out: Path,
    chat_template: str | None = None,
) -> None:
    """Writes the tokenizer of an output vocabulary.

    With the donor's own tokens its files are copied. Otherwise tokenizer.json is the
    donor's with every output token under its id in the tokenizer's model; tokens that
    another model matches in raw text (special tokens), and those that no model has,
    are matched so here too. The other tokens of other models do not become such
    tokens: 'cat' would then be cut out of 'concatenate', in texts that the donor reads
    well. A WordLevel, WordPiece or Unigram model uses them as any token of its own; a
    BPE model reaches them only where its merges (the donor's) lead, or where it looks
    up whole words first.

    Args:
      alignment: of `vocabulary.align`.
      donor: folder of the model `alignment.donor`.
      vocabularies: label -> vocabulary, as `align` had them.
      out: an existing folder.
      chat_template: Jinja text that replaces the donor's; None leaves it.

    Raises:
      CheckpointError: the donor has no tokenizer that can be extended.
      OSError: the folder is not writable.
    """
    document = read_document(donor)
    changed = tokens_of(donor, document) != dict(alignment.ids)
    patterns = _OTHER_FILES if changed else (*_VOCABULARY_FILES, *_OTHER_FILES)
    if not changed and (donor / TOKENIZER).is_file():
        patterns = (TOKENIZER, *patterns)
    for file in dict.fromkeys(f for pattern in patterns for f in donor.glob(pattern)):
        target = out / file.relative_to(donor)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    if changed:
        flags = _added(alignment, vocabularies)
        document = with_tokens(donor, document, alignment.ids, flags)
        atomic.write_text(
            out / TOKENIZER, json.dumps(document, ensure_ascii=False, indent=1)
        )
        _name_in_config(out / CONFIG, alignment.ids, flags)
    if chat_template is not None:
        write_template(out, chat_template)


def _added(
    alignment: Alignment, vocabularies: Mapping[str, Vocabulary]
) -> dict[str, Mapping[str, Any]]:
    """Output tokens that are matched in raw text -> their flags, the donor's first."""
    donor = vocabularies[alignment.donor]
    found: dict[str, Mapping[str, Any]] = {}
    for vocabulary in (donor, *vocabularies.values()):
        for token, flags in vocabulary.added.items():
            # What the donor reads as ordinary text stays ordinary.
            if token in donor.added or token not in donor.ids:
                found.setdefault(token, flags)
    known = {token for vocabulary in vocabularies.values() for token in vocabulary.ids}
    for token in alignment.ids:
        if token not in known:
            found[token] = full_flags({})
    return {token: found[token] for token in alignment.ids if token in found}


def _name_in_config(
    file: Path, ids: Mapping[str, int], flags: Mapping[str, Mapping[str, Any]]
) -> None:
    """Added tokens in tokenizer_config.json, where the donor lists its own there."""
    config = read_object(file) if file.is_file() else {}
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] = {
            str(ids[token]): {"content": token, **full_flags(given)}
            for token, given in sorted(flags.items(), key=lambda item: ids[item[0]])
        }
        atomic.write_json(file, config)
