"""One vocabulary for models that have different ones, for the length of a merge."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.checkpoints.lazy import open_checkpoint
from fusion_jax.checkpoints.plan import MergePlan
from fusion_jax.checkpoints.vocabulary.chat_template import (
    chat_template,
    write_template,
)
from fusion_jax.checkpoints.vocabulary.files import (
    read_vocabularies,
    vocabulary_tensors,
    write_tokenizer,
)
from fusion_jax.checkpoints.vocabulary.union import align


class MergeVocabulary:
    """The rows of embeddings and heads, brought into one order before they are merged.

    Attributes:
      plan: with the vocabulary's size among the changes of the config.
      shapes: of the tensors that have a vocabulary axis, in the output.
    """

    def __init__(self, plan: MergePlan) -> None:
        """Reads the vocabularies.

        Raises:
          CheckpointError: tokenizers that cannot be read, options that do not fit.
        """
        assert plan.tokenizer is not None
        self._vocabularies = read_vocabularies(plan.models)
        self._alignment = align(self._vocabularies, plan.tokenizer)
        self._models = {label: open_checkpoint(p) for label, p in plan.models.items()}
        tall = {
            label: vocabulary_tensors(model, _vocab_size(model.config()))
            for label, model in self._models.items()
        }
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._names: dict[str, str] = {}
        for tensor in plan.tensors:
            source = tensor.sources[0]
            if source.tensor in tall[source.model]:
                shape = self._models[source.model].tensors[source.tensor].shape
                self.shapes[tensor.name] = self._alignment.num_rows, *shape[1:]
                self._names[tensor.name] = source.tensor
        self.plan = replace(
            plan,
            config_changes={**plan.config_changes, **self._changes(plan)},
            notes=(*plan.notes, *self._alignment.notes),
        )

    def align(
        self, name: str, tensors: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Rows of each model's tensor in the order of the one vocabulary."""
        known = dict(tensors)
        # A token may take its row from a model that is no source of this tensor.
        for label, model in self._models.items():
            if label not in known and self._names[name] in model.tensors:
                known[label] = model.read(self._names[name])
        return self._alignment.apply(known, wanted=tuple(tensors))

    def write(self, folder: Path) -> None:
        """Writes the tokenizer's files."""
        template = None
        if self.plan.chat_template is not None:
            template = chat_template(
                self.plan.chat_template, list(self.plan.models.values())
            )
        donor = self.plan.models[self._alignment.donor]
        write_tokenizer(self._alignment, donor, self._vocabularies, folder, template)

    def _changes(self, plan: MergePlan) -> dict[str, Any]:
        config = self._models[plan.donor].config()
        rows = self._alignment.num_rows
        if "vocab_size" not in config and isinstance(config.get("text_config"), dict):
            return {"text_config": {**config["text_config"], "vocab_size": rows}}
        return {"vocab_size": rows}


def write_chat_template(plan: MergePlan, folder: Path) -> None:
    """Writes the template that a plan asks for, where its vocabulary is the donor's."""
    assert plan.chat_template is not None
    text = chat_template(plan.chat_template, list(plan.models.values()))
    if text is not None:
        write_template(folder, text)


def _vocab_size(config: Mapping[str, Any]) -> int:
    text = config.get("text_config")
    inner = text.get("vocab_size") if isinstance(text, dict) else None
    return int(config.get("vocab_size") or inner or -1)
