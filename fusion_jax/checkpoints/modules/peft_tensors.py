"""Tensors of Hugging Face peft files against the leaves of modules, in both ways."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.checkpoints.modules.paths import (
    kind_of_head,
    layer_path,
    leaf_of_tensor,
    tensor_of_leaf,
    torch_path,
    with_base,
)
from fusion_jax.models.names import TRANSFORMS

LAYERED = "base_model.model."
"""What stands before a host's modules in the files of LoRA and (IA)^3."""

PROMPT = "base_model."
"""The same in the files of prompt and prefix tuning."""

ROWS = "prompt_embeddings"
"""The tensor of prompt and prefix tuning; nothing stands before its name."""

# Suffix -> our leaf below the layer. The first of a leaf is what is written; the others
# are written by older versions, by loralib and by T-Few.
_PARTS: tuple[tuple[str, str], ...] = (
    ("lora_A.weight", "lora/a"),
    ("lora_B.weight", "lora/b"),
    ("lora_A", "lora/a"),
    ("lora_B", "lora/b"),
    ("lora_embedding_A", "lora/a"),
    ("lora_embedding_B", "lora/b"),
    ("lora_magnitude_vector", "lora/magnitude"),
    ("lora_magnitude_vector.weight", "lora/magnitude"),
    ("ia3_l", "ia3/scale"),
    ("multi_lora_b", "ia3/scale"),
)
_PART = re.compile(
    r"(?P<module>.+)\."
    f"(?P<part>{'|'.join(re.escape(part) for part, _ in reversed(_PARTS))})"
)
_LEAF_OF_PART: Mapping[str, str] = dict(_PARTS)
# peft writes a wrapped module's tensors more than once where all biases are saved.
_COPIES = re.compile(r".+\.(original_module|modules_to_save)\.(weight|bias)")


class Tensor(NamedTuple):
    """A tensor of a file, understood.

    Attributes:
      module: torch path of the host's module, without what stands before it.
      leaf: name of our leaf.
      value: in our layout.
      part: its suffix, such as 'lora_A.weight'; empty for a tensor of the host.
    """

    module: str
    leaf: str
    value: np.ndarray
    part: str


def modules_of(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Torch paths of (modules with an adapter, modules of which it has tensors)."""
    split = [_split(name) for name in names if name != ROWS and not _copy(name)]
    adapted = {module for module, part in split if part}
    return sorted(adapted), sorted({module for module, part in split if not part})


def understood(
    tensors: Mapping[str, np.ndarray], family: str
) -> tuple[list[Tensor], list[str]]:
    """Reads the tensors of an adapter.

    Args:
      tensors: as the file names them, `ROWS` left out.
      family: of `models.names.TABLES`, or `GENERIC`.

    Returns:
      (what was understood, faults).
    """
    read, faults = [], []
    for name, array in sorted(tensors.items()):
        if _copy(name):
            continue
        module, part = _split(name)
        found = _part(family, module, part, array) if part else None
        if not part:
            found = _whole(family, _bare(name), array)
        if found is None:
            faults.append(f"{name} is unexpected{_hint(part, array)}")
        else:
            read.append(found)
    return read, faults


def layered_tensors(
    leaves: Mapping[str, np.ndarray], family: str, *, prefixed: bool, before: str
) -> dict[str, np.ndarray]:
    """The inverse of `understood`: names and arrays as peft writes them.

    Args:
      leaves: of LoRA, (IA)^3, or of the host, by name.
      family: see `understood`.
      prefixed: whether the host is a class with a head.
      before: `LAYERED` or `PROMPT`.

    Returns:
      Tensors by name.

    Raises:
      KeyError: the family has no such layer.
      ValueError: peft has no such leaf.
    """
    kind = kind_of_head(family, leaves)
    tensors = {}
    for leaf, value in leaves.items():
        path = leaf.rpartition("/")[0]
        path, _, group = path.rpartition("/")
        if group not in ("lora", "ia3"):
            name, transform = tensor_of_leaf(family, leaf, kind=kind)
            module, _, suffix = name.rpartition(".")
            if f"{path}/{group}/lora/a" in leaves:
                suffix = f"base_layer.{suffix}"  # a bias beside an update
            array = TRANSFORMS[transform](value)
        else:
            module, place = torch_path(family, path, kind=kind)
            table = place is not None and place.kind == "embedding"
            suffix, array = _written(leaf, value, table)
        module = with_base(family, module, prefixed=prefixed)
        tensors[f"{before}{module}.{suffix}"] = np.ascontiguousarray(array)
    return tensors


def _written(leaf: str, value: np.ndarray, table: bool) -> tuple[str, np.ndarray]:
    """(suffix, array) of a leaf of LoRA or (IA)^3."""
    own = leaf.rpartition("/")[2]
    if own in ("a", "b"):
        part = own.upper()
        return f"lora_embedding_{part}" if table else f"lora_{part}.weight", value.T
    if own == "magnitude":
        return "lora_magnitude_vector", value
    if own not in ("scale", "input_scale"):
        raise ValueError(f"{leaf}: peft's files have no place for {own!r}")
    return "ia3_l", value[None] if own == "input_scale" else value[:, None]


def _part(family: str, module: str, part: str, array: np.ndarray) -> Tensor | None:
    found = layer_path(family, module)
    if found is None:
        return None
    leaf = _LEAF_OF_PART[part]
    if leaf == "lora/magnitude":
        value = array if array.ndim == 1 else None
    elif leaf != "ia3/scale":
        value = array.T if array.ndim == 2 else None
    elif array.ndim == 2 and array.shape[1] == 1:
        value = array[:, 0]
    else:
        leaf = "ia3/input_scale"
        value = array[0] if array.ndim == 2 and array.shape[0] == 1 else None
    if value is None:
        return None
    return Tensor(module, f"{found[0]}/{leaf}", np.ascontiguousarray(value), part)


def _whole(family: str, name: str, array: np.ndarray) -> Tensor | None:
    """A tensor of the host itself: a head, a bias."""
    name = name.replace(".base_layer.", ".")
    found = leaf_of_tensor(family, name)
    if found is None:
        return None
    leaf, transform = found
    return Tensor(name.rpartition(".")[0], leaf, TRANSFORMS[transform](array), "")


def _hint(part: str, array: np.ndarray) -> str:
    if part and array.ndim not in (1, 2):
        return f": shape {array.shape} is of a convolution, which is not supported"
    return ""


def _copy(name: str) -> bool:
    return _COPIES.fullmatch(name) is not None


def _bare(name: str) -> str:
    """A name without what peft puts before the host's module."""
    for before in (LAYERED, PROMPT):
        if name.startswith(before):
            return name.removeprefix(before)
    return name


def _split(name: str) -> tuple[str, str]:
    """(torch module, suffix of an adapter's part or '')."""
    found = _PART.fullmatch(_bare(name))
    if found:
        return found["module"], found["part"]
    return _bare(name).replace(".base_layer.", ".").rpartition(".")[0], ""
