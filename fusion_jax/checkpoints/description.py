"""What config.json says of a model beside its sizes: the head's kind, the labels."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.heads import HEADS, check_kind
from fusion_jax.models.names import TABLES, kinds_of_architecture

CONFIG = "config.json"
# A head without a Hugging Face class lies in its own file beside the encoder.
CHOICE_HEAD = "choice_head.safetensors"
_SEQUENCE_KINDS = ("single_label", "multi_label")
_PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
}


class Description(NamedTuple):
    """A folder's config.json, read.

    Attributes:
      config: the encoder.
      kind: of the head; None for a bare encoder or a head that is not known.
      labels: class names by id, or None where the file names none.
      foreign: whether the architecture is one with heads of its own, unknown here.
    """

    config: EncoderConfig
    kind: str | None
    labels: tuple[str, ...] | None
    foreign: bool


def read_description(directory: Path, kind: str | None = None) -> Description:
    """Reads config.json; `kind`, if given, is what the head must be for.

    Raises:
      CheckpointError: there is no config.json, it is no JSON object, its labels are
        not numbered from 0, or the head is for another kind.
      ValueError: the kind is unknown or none of the family's, or the config describes
        no model of ours.
    """
    if kind is not None and kind not in HEADS:
        raise ValueError(f"kind {kind!r} is unknown; known are {', '.join(HEADS)}")
    file = directory / CONFIG
    values = _read_json(file)
    config = EncoderConfig.from_hf(values, source=str(file))
    if kind is not None:
        check_kind(kind, config.family)
    architecture = _architecture(values)
    named = _kind(directory, config, values)
    if kind is not None and kind != named and not _is_open(kind, named, values):
        held = f"a head for {named}" if named else f"no head we know ({architecture})"
        raise CheckpointError(
            f"{directory} holds {held}, not one for {kind}; load it without a kind and "
            "attach a fresh head"
        )
    known = {"", *TABLES[config.family].ARCHITECTURES.values()}
    regression = values.get("problem_type") == "regression"
    foreign = architecture not in known or regression
    return Description(config, kind or named, _labels(file, values), foreign)


def description_values(
    config: EncoderConfig, kind: str | None, labels: Sequence[str], dtype: str
) -> dict[str, Any]:
    """The content of config.json for a model of this kind and parameter dtype."""
    values = config.to_hf()
    # The class of the choice kind is the bare encoder; its head is another file.
    values["architectures"] = [TABLES[config.family].ARCHITECTURES[kind or "choice"]]
    values["dtype"] = dtype
    if labels:
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    if kind in _PROBLEM_TYPES:
        values["problem_type"] = _PROBLEM_TYPES[kind]
    return values


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist; the folder is no Hugging Face model"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return values


def _architecture(values: Mapping[str, Any]) -> str:
    return (values.get("architectures") or [""])[0]


def _kind(
    directory: Path, config: EncoderConfig, values: Mapping[str, Any]
) -> str | None:
    if (directory / CHOICE_HEAD).is_file():
        return "choice"
    kinds = kinds_of_architecture(config.family, _architecture(values))
    problem = values.get("problem_type")
    if "multi_label" not in kinds:
        return kinds[0] if kinds else None
    if problem == "regression":
        return None
    multiple = problem == _PROBLEM_TYPES["multi_label"]
    return "multi_label" if multiple else "single_label"


def _is_open(kind: str, named: str | None, values: Mapping[str, Any]) -> bool:
    """Whether config.json leaves it open that the head is for this kind."""
    if kind in _SEQUENCE_KINDS and named in _SEQUENCE_KINDS:
        return values.get("problem_type") is None
    return named is None and not _architecture(values) and kind != "choice"


def _labels(file: Path, values: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = values.get("id2label")
    if not names:
        return None
    try:
        by_id = {int(i): str(name) for i, name in names.items()}
    except (AttributeError, ValueError):
        by_id = {}
    if sorted(by_id) != list(range(len(names))):
        raise CheckpointError(
            f"{file}: id2label must number {len(names)} labels from 0 without gaps; "
            f"it has {names}"
        )
    return tuple(by_id[i] for i in range(len(by_id)))
