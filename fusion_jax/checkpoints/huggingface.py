"""Hugging Face model folders in and out: config.json, safetensors, tokenizer, card."""

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.checkpoints.description import (
    CHOICE_HEAD,
    CONFIG,
    description_values,
    read_description,
)
from fusion_jax.checkpoints.matching import leaves_of_files, tensors_of_leaves
from fusion_jax.checkpoints.sources import resolve
from fusion_jax.checkpoints.tensors import (
    WEIGHTS,
    CheckpointError,
    check_finite,
    hash_params,
    read_file,
    read_weights,
    write_file,
)
from fusion_jax.models.config import EncoderConfig
from fusion_jax.types import Key, Model, Params

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "attach_encoder",
    "check_finite",
    "hash_params",
    "load",
    "resolve",
    "save",
]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


class Checkpoint(NamedTuple):
    """A model read from a folder.

    Attributes:
      config: the encoder.
      params: {'encoder': ...}, and 'head' where the folder has the head of a kind.
      kind: the kind of its head, or None for a bare encoder.
      labels: class names in the order of class ids; empty without classes.
      path: the folder.
      sha256: `hash_params(params)`.
    """

    config: EncoderConfig
    params: Params
    kind: str | None
    labels: tuple[str, ...]
    path: Path
    sha256: str


def load(source: str | os.PathLike[str], *, kind: str | None = None) -> Checkpoint:
    """Reads a BERT, RoBERTa, DistilBERT or GPT-2 classifier folder.

    Args:
      source: what `resolve` takes.
      kind: the head that the folder must have; without it the head is the one that
        config.json names, if it is one we know.

    Returns:
      The checkpoint; leaves keep the dtype of the file and lie on the default device.

    Raises:
      FileNotFoundError: there is no such source.
      CheckpointError: missing, unexpected or wrongly shaped tensors (all listed),
        weights that are not finite, pickles, truncated files, missing shards, or no
        head of the kind asked for.
      ValueError: config.json misses keys or describes another family.
    """
    directory = resolve(source)
    description = read_description(directory, kind)
    found = read_weights(directory)
    file, choice = directory / CHOICE_HEAD, {}
    if description.kind == "choice":
        choice = {name: (array, file) for name, array in read_file(file).items()}
    leaves, labels = leaves_of_files(directory, description, found, choice)
    # The check and the hash read host memory; only then do leaves go to the device.
    tree = trees.unflatten(leaves)
    check_finite(tree, str(directory))
    return Checkpoint(
        config=description.config,
        params=jax.tree.map(jnp.asarray, tree),
        kind=description.kind,
        labels=labels,
        path=directory,
        sha256=hash_params(tree),
    )


def save(
    directory: str | os.PathLike[str],
    params: Params,
    config: EncoderConfig,
    *,
    kind: str | None,
    labels: Sequence[str] = (),
    tokenizer_from: str | os.PathLike[str] | None = None,
    card: str | None = None,
) -> Path:
    """Writes a folder that `load` and transformers open with equal outputs.

    Args:
      directory: replaced as a whole when everything is written, else untouched.
      params: {'encoder': ..., 'head': ...}; no 'head' when kind is None.
      config: the encoder.
      kind: of the head; None writes a bare encoder.
      labels: class names in the order of class ids, as many as the head has columns;
        span and choice heads have none.
      tokenizer_from: source whose tokenizer files are copied along.
      card: content of README.md.

    Returns:
      The folder.

    Raises:
      CheckpointError: leaves are missing, too many, of a wrong shape or not finite,
        labels do not fit the head, or `tokenizer_from` has no tokenizer.
      WriteFailed: the disk is full or the folder not writable.
    """
    target = Path(directory)
    leaves = {name: np.asarray(leaf) for name, leaf in trees.flatten(params).items()}
    weights, choice = tensors_of_leaves(config, kind, labels, leaves)
    check_finite(params, f"the model to be saved as {target}")
    tokenizer = _tokenizer_files(tokenizer_from)
    dtype = str(next(iter(leaves.values())).dtype)
    values = description_values(config, kind, labels, dtype)
    with atomic.directory(target) as staging:
        atomic.write_json(staging / CONFIG, values)
        write_file(staging / WEIGHTS, weights)
        if choice:
            write_file(staging / CHOICE_HEAD, choice)
        for file in tokenizer:
            shutil.copyfile(file, staging / file.name)
        if card is not None:
            atomic.write_text(staging / "README.md", card)
    return target


def attach_encoder(model: Model, params: Params, key: Key) -> Params:
    """Fresh parameters of a model with a checkpoint's encoder put in.

    Args:
      model: what the parameters are for.
      params: a checkpoint's; only its 'encoder' is read. What the model has no place
        for (a pooler, say) is left out.
      key: for the leaves that the checkpoint has not: the head, perhaps the pooler.
        Encoder leaves that start fresh are listed in a UserWarning.

    Returns:
      Tree of the model; every leaf in the model's parameter dtype (float32).

    Raises:
      TreeMismatch: leaves have another shape in the checkpoint; all are listed.
    """
    wanted = _leaves_of(model)
    given = trees.flatten({"encoder": params["encoder"]})
    taken = {name: given[name] for name in wanted if name in given}
    wrong = [
        f"{name}: {np.shape(leaf)} in the checkpoint, {wanted[name].shape} in the model"
        for name, leaf in taken.items()
        if np.shape(leaf) != wanted[name].shape
    ]
    if wrong:
        raise trees.TreeMismatch(
            "the checkpoint's encoder does not fit the model:\n  "
            + "\n  ".join(wrong)
            + "\nBuild the model with the checkpoint's own config."
        )
    fresh = [name for name in wanted if name not in taken]
    absent = [name for name in fresh if name.startswith("encoder/")]
    if absent:
        warnings.warn(
            f"the checkpoint lacks {', '.join(absent)}; these leaves start fresh",
            stacklevel=2,
        )

    drawn = _draw(model, tuple(fresh))(key)
    return trees.unflatten(
        {
            name: drawn[name] if name in drawn else jnp.asarray(taken[name], leaf.dtype)
            for name, leaf in wanted.items()
        }
    )


# Kept for the process: a system attaches heads to one model after another.
@functools.lru_cache(maxsize=32)
def _leaves_of(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    return trees.flatten(jax.eval_shape(model.init, jax.random.key(0)))


@functools.lru_cache(maxsize=32)
def _draw(
    model: Model, names: tuple[str, ...]
) -> Callable[[Key], dict[str, jax.Array]]:
    """`(key) -> leaves`; under jit only those asked for are drawn, not the tree."""

    @jax.jit
    def draw(key: Key) -> dict[str, jax.Array]:
        leaves = trees.flatten(model.init(key))
        return {name: leaves[name] for name in names}

    return draw


def _tokenizer_files(source: str | os.PathLike[str] | None) -> list[Path]:
    if source is None:
        return []
    directory = resolve(source)
    files = [directory / name for name in TOKENIZER_FILES]
    present = [file for file in files if file.is_file()]
    if not present:
        raise CheckpointError(
            f"{directory} has no tokenizer files (looked for "
            f"{', '.join(TOKENIZER_FILES)}); name a folder that has them"
        )
    return present
