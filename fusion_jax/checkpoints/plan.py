"""What a merge of files will do, tensor by tensor, known before any weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Source(NamedTuple):
    """A tensor of an input model.

    Attributes:
      model: key of `MergePlan.models`.
      tensor: its name in that model's files.
    """

    model: str
    tensor: str


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of the output comes about.

    Attributes:
      name: in the output.
      method: of `MERGES`, or 'copy' (the one source, unchanged).
      sources: K experts.
      base: of methods that read one.
      coefficients: [K], effective (already normalised where the method asks for it
        through its coefficients).
      options: of the method, numbers and words; numbers may be tuples of K.
    """

    name: str
    method: str
    sources: tuple[Source, ...]
    base: Source | None = None
    coefficients: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MergePlan:
    """A whole merge.

    Attributes:
      models: label -> folder, in the order in which they were given.
      tensors: of the output, in the order of the files.
      donor: label of the model whose config and tokenizer the output takes.
      dtype: numpy name ('float32', 'bfloat16', ...) that tensors are rounded to on
        loading, as mergekit does; None leaves them.
      out_dtype: of floating tensors of the output; None keeps the promotion of the
        sources' dtypes.
      config_changes: keys of config.json that differ from the donor's.
      tokenizer: options of the vocabulary, as `vocabulary.align` reads them; None
        copies the donor's tokenizer.
      chat_template: 'auto', a name or a template; None leaves it.
      notes: lines for the person: warnings, effective choices.
      statistics: label -> file, of methods that read statistics.
    """

    models: Mapping[str, Path]
    tensors: tuple[TensorPlan, ...]
    donor: str
    dtype: str | None = None
    out_dtype: str | None = None
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None
    chat_template: str | None = None
    notes: tuple[str, ...] = ()
    statistics: Mapping[str, Path] = field(default_factory=dict)
