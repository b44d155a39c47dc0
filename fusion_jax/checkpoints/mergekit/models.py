"""The models of a mergekit file: opened, named once each, with their tied heads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints.block_names import is_embedding, is_head, stacks_of
from fusion_jax.checkpoints.lazy import LazyCheckpoint, TensorInfo, open_checkpoint
from fusion_jax.checkpoints.mergekit.config import MergekitConfig
from fusion_jax.checkpoints.mergekit.reference import folder_of
from fusion_jax.checkpoints.mergekit.yaml import MergekitError, Reading
from fusion_jax.checkpoints.tensors import CheckpointError


@dataclass(frozen=True)
class Model:
    """An input model.

    Attributes:
      label: how the file names it first.
      checkpoint: its tensors.
      stacks: prefix of its blocks -> how many.
      config: what config.json says.
    """

    label: str
    checkpoint: LazyCheckpoint
    stacks: Mapping[str, int]
    config: Mapping[str, Any]

    def info(self, name: str) -> TensorInfo:
        """Of a tensor that is there."""
        return self.checkpoint.tensors[name]

    def find(self, name: str) -> str | None:
        """The tensor of that name; for an absent head the embedding it is tied to."""
        tensors = self.checkpoint.tensors
        if name in tensors:
            return name
        if not is_head(name) or self.config.get("tie_word_embeddings") is False:
            return None
        return next((other for other in tensors if is_embedding(other)), None)


@dataclass(frozen=True)
class Models:
    """All models of a file.

    Attributes:
      by_label: in the order of the file, its base last where it is not listed.
      labels: as the file writes it -> label; two ways of writing one folder are one.
    """

    by_label: Mapping[str, Model]
    labels: Mapping[str, str]

    def named(self, text: str) -> Model:
        """The model that the file means by a text."""
        return self.by_label[self.labels[text]]


def open_models(config: MergekitConfig, directory: Path, reading: Reading) -> Models:
    """Opens every model that is named in a file.

    Args:
      config: of the file.
      directory: of the file; models may be named relative to it.
      reading: receives faults and notes.

    Raises:
      MergekitError: lists all models that are not there.
    """
    by_label: dict[str, Model] = {}
    labels: dict[str, str] = {}
    folders: dict[Path, str] = {}
    for text in dict.fromkeys(_named(config)):
        try:
            folder = folder_of(text, directory)
            label = folders.setdefault(folder.resolve(), text)
            if label == text:
                opened = open_checkpoint(folder)
                stacks = stacks_of(opened.tensors)
                by_label[label] = Model(label, opened, stacks, opened.config())
            else:
                reading.note((), f"'{text}' and '{label}' are one folder, one model")
            labels[text] = label
        except (MergekitError, CheckpointError) as error:
            reading.fault((), str(error))
    reading.check()
    return Models(by_label, labels)


def _named(config: MergekitConfig) -> Iterable[str]:
    slices = [part for module in config.modules.values() for part in module.slices]
    for part in slices:
        yield from (given.model for given in part.inputs)
    if config.base is not None:
        yield config.base
    yield from (part.base for part in slices if part.base is not None)
    if config.tokenizer is None:
        return
    if config.tokenizer["source"] not in ("union", "base"):
        yield config.tokenizer["source"]
    for said in config.tokenizer["tokens"].values():
        source = said["source"]
        if isinstance(source, str):
            yield source
        elif source is not None and "model" in source:
            yield source["model"]
