"""Tensors of files against the leaves that a config asks for, all faults at once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.description import Description
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.models.build import build_model
from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.heads import check_kind, needs_pooler
from fusion_jax.models.names import (
    TABLES,
    TRANSFORMS,
    Entry,
    encoder_entries,
    head_entries,
)

Found = Mapping[str, tuple[np.ndarray, Path]]
"""name in the files -> (array, the file it stands in)."""

_FLOATS = ("float32", "float16", "bfloat16")
_CHOICE_ENTRIES = (
    Entry("choice.weight", "head/choice/kernel", "transpose"),
    Entry("choice.bias", "head/choice/bias", "identity"),
)
# Names of layer norm leaves in files written before 2020.
_LEGACY = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))
_POOLER = "encoder/pooler/"
# Heads whose width is the number of labels.
LABELLED_KINDS = ("single_label", "multi_label", "token")


def leaves_of_files(
    directory: Path, description: Description, found: Found, choice: Found
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Turns the tensors of a folder into leaves and label names.

    Args:
      directory: for the message.
      description: of the folder's config.json.
      found: tensors of the weights.
      choice: tensors of the choice head's own file, empty without one.

    Returns:
      leaf name -> array in our layout, dtype of the file; and the labels.

    Raises:
      CheckpointError: tensors are missing, unexpected, of a wrong shape or dtype, or
        the labels do not fit the head; every fault is listed with its file.
    """
    config, kind, labels, foreign = description
    found = {_modern(name): held for name, held in found.items()}
    prefix = f"{TABLES[config.family].BASE}."
    prefixed = any(name.startswith(prefix) for name in found)
    entries = [
        entry
        for entry in encoder_entries(config, prefixed=prefixed)
        if entry.source in found or not _may_lack(entry, config, kind)
    ]
    entries += head_entries(config, kind) if kind else []
    shapes = _shapes(config, kind, _head_width(config, kind, found))
    leaves: dict[str, np.ndarray] = {}
    problems = _take(entries, found, shapes, leaves)
    if kind == "choice":
        problems += _take(_CHOICE_ENTRIES, choice, shapes, leaves)
    for name in sorted(found.keys() - {entry.source for entry in entries}):
        # A class we do not know (a language model, say) has heads of its own.
        others = foreign and (not prefixed or not name.startswith(prefix))
        if not others and not _is_ignored(config, name):
            problems.append(f"{found[name][1].name}: {name} is unexpected")
    names: tuple[str, ...] = ()
    width = _head_width(config, kind, found)
    if kind in LABELLED_KINDS and width:
        names = labels or tuple(f"LABEL_{i}" for i in range(width))
        if len(names) != width:
            problems.append(
                f"config.json names {len(names)} labels, the head has {width}"
            )
    if problems:
        raise CheckpointError(
            f"{directory}: {len(problems)} faults against its config.json "
            f"({config.family}, {kind or 'bare encoder'}):\n  {_listed(problems)}\n"
            "The weights and config.json are of different models, or a file is damaged."
        )
    return leaves, names


def tensors_of_leaves(
    config: EncoderConfig,
    kind: str | None,
    labels: Sequence[str],
    leaves: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inverse: what stands in model.safetensors and in the choice head's file.

    Raises:
      CheckpointError: leaves are missing, too many, or of a wrong shape, or labels do
        not fit the head; every fault is listed.
      ValueError: the family has no head of this kind.
    """
    if kind is not None:
        check_kind(kind, config.family)
    # transformers looks for 'bert.' in files with a head, and for bare names else.
    bare = kind is None or not head_entries(config, kind)
    entries = [
        entry
        for entry in encoder_entries(config, prefixed=not bare)
        if entry.leaf in leaves or not _may_lack(entry, config, kind)
    ]
    if not bare and kind is not None and not needs_pooler(kind, config.family):
        entries = [e for e in entries if not e.leaf.startswith(_POOLER)]
    entries += head_entries(config, kind) if kind else []
    choice = _CHOICE_ENTRIES if kind == "choice" else ()
    wanted = [entry.leaf for entry in (*entries, *choice)]
    shapes = _shapes(config, kind, len(labels) or 1)
    problems = [f"{name} is missing" for name in wanted if name not in leaves]
    problems += [
        f"{name} has no place in {_class_name(config, kind)}"
        for name in leaves
        if name not in wanted
    ]
    problems += [
        f"{name} has shape {leaves[name].shape}, the config and the {len(labels)} "
        f"labels say {shapes[name]}"
        for name in wanted
        if name in leaves and leaves[name].shape != shapes[name]
    ]
    if kind in LABELLED_KINDS and len(set(labels)) != len(labels):
        problems.append("two labels have the same name")
    if problems:
        raise CheckpointError(
            f"{len(problems)} leaves do not make a {_class_name(config, kind)}:\n  "
            f"{_listed(problems)}"
        )

    def tensors(entries: Iterable[Entry]) -> dict[str, np.ndarray]:
        return {e.source: TRANSFORMS[e.transform](leaves[e.leaf]) for e in entries}

    return tensors(entries), tensors(choice)


def _shapes(
    config: EncoderConfig, kind: str | None, width: int
) -> dict[str, tuple[int, ...]]:
    """Leaf shapes that the config asks for, the pooler included."""
    # Every family classifies; without a kind only the encoder's leaves are read.
    model = build_model(config, kind or "single_label", max(width, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    pooler = (config.hidden_size, config.hidden_size)
    return {
        f"{_POOLER}kernel": pooler,
        f"{_POOLER}bias": pooler[:1],
        **{name: leaf.shape for name, leaf in trees.flatten(shapes).items()},
    }


def _head_width(config: EncoderConfig, kind: str | None, found: Found) -> int:
    """C by the head's last tensor, [C] or [C, D]; 0 where it is not there."""
    entries = head_entries(config, kind) if kind else []
    if not entries or entries[-1].source not in found:
        return 0
    return int(found[entries[-1].source][0].shape[0])


def _take(
    entries: Sequence[Entry],
    found: Found,
    shapes: Mapping[str, tuple[int, ...]],
    leaves: dict[str, np.ndarray],
) -> list[str]:
    """Moves the tensors of the entries into leaves; returns what is wrong."""
    problems = []
    files = ", ".join(sorted({file.name for _, file in found.values()}))
    for source, leaf, transform in entries:
        if source not in found:
            problems.append(f"{files}: {source} is missing ({leaf})")
            continue
        array, file = found[source]
        value = TRANSFORMS[transform](array)
        if str(array.dtype) not in _FLOATS:
            problems.append(
                f"{file.name}: {source} is {array.dtype}; {', '.join(_FLOATS)} are read"
            )
        elif value.shape != shapes[leaf]:
            wanted = shapes[leaf][::-1] if transform == "transpose" else shapes[leaf]
            problems.append(
                f"{file.name}: {source} has shape {array.shape}, config.json says "
                f"{wanted}"
            )
        else:
            leaves[leaf] = value
    return problems


def _may_lack(entry: Entry, config: EncoderConfig, kind: str | None) -> bool:
    """A pooler that nothing reads may be absent."""
    used = kind is not None and needs_pooler(kind, config.family)
    return entry.leaf.startswith(_POOLER) and not used


def _is_ignored(config: EncoderConfig, name: str) -> bool:
    return any(re.fullmatch(form, name) for form in TABLES[config.family].IGNORED)


def _class_name(config: EncoderConfig, kind: str | None) -> str:
    name = TABLES[config.family].ARCHITECTURES[kind or "choice"]
    return f"{name} with a choice head" if kind == "choice" else name


def _modern(name: str) -> str:
    for pattern, suffix in _LEGACY:
        name = pattern.sub(suffix, name)
    return name


def _listed(problems: Sequence[str], limit: int = 40) -> str:
    more = f"\n  and {len(problems) - limit} more" if len(problems) > limit else ""
    return "\n  ".join(problems[:limit]) + more
