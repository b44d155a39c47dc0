"""Leaves of our trees by the names that the tensors of a folder really have."""

import re

from fusion_jax.checkpoints.description import read_description
from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.models.names import TABLES, Entry, encoder_entries, head_entries

# Names of layer norm leaves in files written before 2020.
_LEGACY = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))


def entries_of(model: LazyCheckpoint, kind: str | None) -> dict[str, Entry]:
    """Leaf -> the tensor that it stands for, as its files name it.

    Leaves without a tensor of their own (a head in another file, a head that is the
    embedding) are not among them.

    Args:
      model: a folder of a family that we know.
      kind: of the head.

    Raises:
      CheckpointError: config.json is missing or describes another kind of head.
      ValueError: it describes no family of ours.
    """
    config = read_description(model.directory, kind).config
    prefix = f"{TABLES[config.family].BASE}."
    prefixed = any(name.startswith(prefix) for name in model.tensors)
    entries = encoder_entries(config, prefixed=prefixed)
    entries += head_entries(config, kind) if kind else []
    real = {_modern(name): name for name in model.tensors}
    return {
        entry.leaf: entry._replace(source=real[entry.source])
        for entry in entries
        if entry.source in real
    }


def _modern(name: str) -> str:
    for pattern, suffix in _LEGACY:
        name = pattern.sub(suffix, name)
    return name
