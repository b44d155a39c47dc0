"""Width by correlation: dimensions of two hosts that move together are one."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from fusion_jax.peft.port_host import Host
from fusion_jax.peft.port_maps import Map, Maps
from fusion_jax.peft.port_spaces import (
    HEADS_QK,
    HEADS_VALUE,
    OWN,
    PROBES,
    STREAM,
    Space,
    seen,
    space_of,
)

Pairs = Sequence[tuple[int, ...]]
"""For each layer of the receiver the origin's layers that it takes."""


def correlation_maps(source: Host, target: Host, pairs: Pairs) -> Maps:
    """Maps that pick, for each dimension of the receiver, one of the origin's.

    c[t, s] is the correlation over shared tokens, the mean over what measures a space;
    the assignment maximises its sum. The residual stream is one space for all layers.
    Heads are matched as a whole, by what the best assignment of their dimensions in
    query, key and value comes to, and then dimensions inside of them.

    Args:
      source: the origin's host, with states.
      target: the receiver's host, with states over the same tokens.
      pairs: which layers correspond.

    Reference: Klimaszewski et al. 2024, arXiv 2403.18804; heads are ours.
    """
    kept: dict[tuple, Map] = {}
    heads: dict[tuple[int, int], dict[str, Map]] = {}

    def find(space: Space) -> Map:
        if space.kind == STREAM:
            return Map(assignment(_stream_correlation(source, target, pairs)))
        if space.kind in (HEADS_QK, HEADS_VALUE):
            assert space.pair is not None
            if space.pair not in heads:
                heads[space.pair] = _head_maps(source, target, space.pair)
            return heads[space.pair][space.kind]
        if space.kind == OWN:
            return Map(
                assignment(
                    correlation(
                        seen(target, space.path, space.side),
                        seen(source, space.source_path, space.side),
                    )
                )
            )
        return Map(assignment(_layer_correlation(source, target, space)))

    def maps(path: str, source_path: str, side: str) -> Map:
        space = space_of(target, source, path, source_path, side)
        name = space if space.kind == OWN else (space.kind, space.pair)
        if name not in kept:
            kept[name] = find(space)
        return kept[name]

    return maps


def correlation(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Pearson's correlation of columns [d_t, d_s]; 0 for what does not vary.

    Args:
      target: [N, d_t], rows of shared tokens.
      source: [N, d_s].
    """
    return _standard(target).T @ _standard(source)


def assignment(scores: np.ndarray) -> np.ndarray:
    """The source of each target, so that the sum of scores is largest.

    Args:
      scores: [d_t, d_s].

    Returns:
      [d_t] int, -1 for targets beyond the number of sources.
    """
    rows, columns = linear_sum_assignment(scores, maximize=True)
    index = np.full(len(scores), -1)
    index[rows] = columns
    return index


def _standard(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=0)
    norm = np.linalg.norm(x, axis=0)
    return x / np.where(norm > 0, norm, 1)


def _stream_correlation(source: Host, target: Host, pairs: Pairs) -> np.ndarray:
    found = [
        correlation(
            seen(target, f"encoder/layer_{j}/{path}", side),
            seen(source, f"encoder/layer_{i}/{path}", side),
        )
        for j, taken in enumerate(pairs)
        for i in taken
        for path, side in PROBES[STREAM]
    ]
    return np.mean(found, axis=0)


def _layer_correlation(source: Host, target: Host, space: Space) -> np.ndarray:
    assert space.pair is not None
    j, i = space.pair
    found = [
        correlation(
            seen(target, f"encoder/layer_{j}/{path}", side),
            seen(source, f"encoder/layer_{i}/{path}", side),
        )
        for path, side in PROBES[space.kind]
    ]
    return np.mean(found, axis=0)


def _head_maps(source: Host, target: Host, pair: tuple[int, int]) -> dict[str, Map]:
    """Maps of the head spaces of one layer: whole heads first, then inside."""
    inner = {}
    for kind in (HEADS_QK, HEADS_VALUE):
        space = Space(kind, pair, "", "", "")
        whole = _layer_correlation(source, target, space)
        d_t, d_s = (n // h for n, h in zip(whole.shape, _heads(target, source),
                                           strict=True))  # fmt: skip
        # [H_t, H_s, d_t, d_s]
        blocks = whole.reshape(target.num_heads, d_t, source.num_heads, d_s)
        inner[kind] = np.moveaxis(blocks, 2, 1)
    scores = np.zeros((target.num_heads, source.num_heads))
    for blocks in inner.values():
        for t, s in np.ndindex(*scores.shape):
            rows, columns = linear_sum_assignment(blocks[t, s], maximize=True)
            scores[t, s] += blocks[t, s][rows, columns].sum()
    matched = assignment(scores)
    maps = {}
    for kind, blocks in inner.items():
        d_t, d_s = blocks.shape[2:]
        index = np.full(target.num_heads * d_t, -1)
        for t, s in enumerate(matched):
            if s < 0:
                continue
            inside = assignment(blocks[t, s])
            index[t * d_t : (t + 1) * d_t] = np.where(inside < 0, -1, s * d_s + inside)
        maps[kind] = Map(index)
    return maps


def _heads(target: Host, source: Host) -> tuple[int, int]:
    return target.num_heads, source.num_heads
