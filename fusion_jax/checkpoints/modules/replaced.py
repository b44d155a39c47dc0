"""Leaves of the host that a module has its own of, in the words of peft's config."""

import re
from collections import defaultdict
from collections.abc import Sequence

from fusion_jax.checkpoints.modules.paths import GENERIC, torch_path
from fusion_jax.checkpoints.modules.peft_tensors import Tensor
from fusion_jax.models.names import module_leaves

TASKS = {
    "single_label": "SEQ_CLS",
    "multi_label": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "span": "QUESTION_ANS",
}
"""Kind of the head -> task_type."""


def saved_modules(
    family: str, leaves: Sequence[str], layers: Sequence[str], kind: str | None
) -> tuple[list[str], str, list[str]]:
    """How peft is told of a module's own heads, norms and biases.

    Args:
      family: of the host.
      leaves: names of the host's leaves that the module has.
      layers: our paths of the layers that have an update.
      kind: of the head.

    Returns:
      (modules_to_save, bias, faults).
    """
    parts: dict[str, set[str]] = defaultdict(set)
    for leaf in leaves:
        path, _, own = leaf.rpartition("/")
        parts[path].add(own)
    saved, biases, faults = [], [], []
    for path, own in parts.items():
        try:
            module, place = torch_path(family, path, kind=kind)
        except KeyError:
            faults.append(f"{path}: a {family} model has no such layer")
            continue
        whole = family == GENERIC or (
            place is not None
            and own >= {leaf for _, leaf, _ in module_leaves(place.kind)}
        )
        if whole and path not in layers:
            head = place is not None and place.head
            saved.append(module.partition(".")[0] if head else module)
        elif own == {"bias"}:
            biases.append(path)
        else:
            faults.append(
                f"{path}: peft saves whole layers or biases, not {sorted(own)}"
            )
    mode = "none"
    if biases:
        mode = "lora_only" if set(biases) == set(layers) else "all"
    return list(dict.fromkeys(saved)), mode, faults


def unexplained(
    tensors: Sequence[Tensor],
    saved: Sequence[str],
    bias: str,
    layers: Sequence[str],
) -> list[str]:
    """Tensors of the host that neither modules_to_save nor bias accounts for.

    Args:
      tensors: understood.
      saved: modules_to_save of the config.
      bias: of the config.
      layers: our paths of the layers that have an update.
    """
    faults = []
    for tensor in tensors:
        if tensor.part:
            continue
        # peft saves every module whose name ends so: 'pre_classifier' too.
        kept = any(
            re.match(rf"(^|.*\.)[^.]*{re.escape(name)}($|\..*)", tensor.module)
            for name in saved
        )
        path, _, own = tensor.leaf.rpartition("/")
        beside = own == "bias" and (
            bias == "all" or (bias == "lora_only" and path in layers)
        )
        # The table beneath an update of its own is written as it is.
        table = own == "embedding" and path in layers
        if not (kept or beside or table):
            faults.append(
                f"{tensor.module} is unexpected: neither modules_to_save nor bias "
                f"({bias!r}) names it"
            )
    return faults
