"""Modules merged layer by layer and leaf by leaf, with what is wrong with each."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fusion_jax.peft.combine_table import Combine
from fusion_jax.peft.factors import Factors
from fusion_jax.peft.low_rank import updates_of
from fusion_jax.peft.module import Module
from fusion_jax.types import Key, Params


def merge_updates(
    record: Combine,
    modules: Sequence[Module],
    weights: Sequence[float],
    options: Mapping[str, Any],
    host: Params | None,
    key: Key | None,
) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, float], list[str]]:
    """Low-rank updates, layer by layer.

    Args:
      record: of the method.
      modules: K modules of kind lora.
      weights: K numbers.
      options: of the method.
      host: for DoRA.
      key: of random masks; each layer has its own.

    Returns:
      (leaves, rank of each layer, what cuts lost, faults).
    """
    assert record.update is not None
    found = [updates_of(module, host) for module in modules]
    own = (leaf.dtype for m in modules for leaf in jax.tree.leaves(m.params))
    dtype = np.result_type(*own)
    leaves, ranks, lost, faults = {}, {}, {}, []
    for path in dict.fromkeys(path for updates in found for path in updates):
        have = [
            (updates[path], weight)
            for updates, weight in zip(found, weights, strict=True)
            if path in updates
        ]
        parts = [part for part, _ in have]
        shapes = sorted({(part.a.shape[0], part.b.shape[1]) for part in parts})
        if len(shapes) > 1:
            said = " and ".join(map(str, shapes))
            faults.append(f"{path}: updates of kernels {said}; port them to one host")
            continue
        drawn = {"key": _fold(key, path)} if record.key and key is not None else {}
        try:
            merged, error = record.update(
                parts, [w for _, w in have], **options, **drawn
            )
        except ValueError as fault:
            faults.append(f"{path}: {fault}")
            continue
        leaves |= _leaves_of(path, merged, dtype)
        ranks[path] = merged.rank
        if "rank" in record.options:
            lost[path] = error
    return leaves, ranks, lost, faults


def merge_leaves(
    record: Combine,
    modules: Sequence[Mapping[str, np.ndarray]],
    weights: Sequence[float],
    options: Mapping[str, Any],
    key: Key | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Leaves of a kind that is no low-rank update, one by one.

    Args:
      record: of the method.
      modules: K modules' own leaves by name.
      weights: K numbers.
      options: of the method; rank and energy say nothing here.
      key: of random masks; each leaf has its own.

    Returns:
      (leaves, faults).
    """
    assert record.leaf is not None
    merged, faults = {}, []
    for name in dict.fromkeys(name for leaves in modules for name in leaves):
        # A scale that a module lacks is 1; a part of a network cannot be lacking.
        neutral = 1.0 if "/ia3/" in name else 0.0
        lacking = [k for k, leaves in enumerate(modules) if name not in leaves]
        if lacking and not neutral:
            faults.append(
                f"{name}: module {lacking[0]} has none; the places must agree"
            )
            continue
        first = next(leaves[name] for leaves in modules if name in leaves)
        have = [leaves.get(name, np.full_like(first, neutral)) for leaves in modules]
        shapes = list(dict.fromkeys(leaf.shape for leaf in have))
        if len(shapes) > 1:
            faults.append(f"{name}: shapes {' and '.join(map(str, shapes))}")
            continue
        drawn = {"key": _fold(key, name)} if record.key and key is not None else {}
        own = {k: v for k, v in options.items() if k not in ("rank", "energy")}
        result = record.leaf(have, weights, neutral, **own, **drawn)
        merged[name] = np.asarray(result).astype(first.dtype)
    return merged, faults


def _leaves_of(path: str, update: Factors, dtype: Any) -> dict[str, np.ndarray]:
    return {
        f"{path}/lora/a": update.a.astype(dtype),
        f"{path}/lora/b": update.b.astype(dtype),
    }


def _fold(key: Key, name: str) -> Key:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
