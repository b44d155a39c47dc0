"""Which sources to keep for each target: ranks, their fusion, and what is dropped.

Tables are [N, N]: row s, column t, source s for target t. A task is no source of
itself: the diagonal is never read. Distances are smaller for closer, scores larger for
better.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

KEEP = 0.6
"""Fraction of the sources that is kept for each target, where nothing else is known."""

_FUSION = 60  # of reciprocal rank fusion, as its authors have it


def ranks(distances: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Rank of each source among the sources of a target, 1 = closest.

    Args:
      distances: [N, N]; infinity is farther than any number.
      names: of the tasks; ties go to the name that sorts first, so that an order does
        not depend on how tasks were listed.

    Returns:
      [N, N] int64; 0 on the diagonal.

    Raises:
      ValueError: NaN: such a source would come first or last by chance.
    """
    table = _square(distances, names)
    off = ~np.eye(len(names), dtype=bool)
    if np.isnan(table[off]).any():
        bad = np.argwhere(np.isnan(table) & off)
        told = ", ".join(f"{names[s]} for {names[t]}" for s, t in bad[:8])
        raise ValueError(f"{len(bad)} pairs have no distance: {told}")
    by_name = np.argsort(np.argsort(np.asarray(names), kind="stable"))
    found = np.zeros(table.shape, np.int64)
    for t in range(len(names)):
        sources = [s for s in range(len(names)) if s != t]
        order = sorted(sources, key=lambda s: (table[s, t], by_name[s]))
        found[order, t] = np.arange(1, len(order) + 1)
    return found


def fused_ranks(tables: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Ranks by several measures together: largest sum_m 1 / (60 + rank_m) first.

    Args:
      tables: measure -> distances [N, N].
      names: of the tasks.

    Returns:
      [N, N] int64, as `ranks`.

    Reference: Cormack et al. 2009, doi:10.1145/1571941.1572114.
    """
    if not tables:
        raise ValueError("no measure is given; rank fusion needs at least one")
    total = sum(1 / (_FUSION + ranks(table, names)) for table in tables.values())
    return ranks(-np.asarray(total), names)


def kept(ranked: np.ndarray, keep: float = KEEP) -> np.ndarray:
    """Whether a source is kept for a target, [N, N] bool.

    Args:
      ranked: of `ranks`.
      keep: fraction in (0, 1].

    Raises:
      ValueError: the fraction is none.
    """
    return (ranked > 0) & (ranked <= kept_count(len(ranked) - 1, keep))


def kept_count(sources: int, keep: float = KEEP) -> int:
    """How many of m sources are kept: ceil(keep * m), one at least.

    Args:
      sources: m.
      keep: fraction in (0, 1].

    Raises:
      ValueError: the fraction is none.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: {keep}; give a fraction above 0 and up to 1")
    # 0.3 * 10 is 3.0000000000000004 for a computer.
    return max(1, math.ceil(round(keep * sources, 9)))


def learned_distances(
    tables: Mapping[str, np.ndarray],
    scores: np.ndarray,
    names: Sequence[str],
    *,
    ridge: float = 1.0,
) -> np.ndarray:
    """Distances by a linear combination of measures, learned from pairs already tried.

    d_st = -w_t . z_st
    w_t = argmin_w sum_{u != t} sum_s (w . z_su - y_su)^2 + r ||w||^2
    with z the measures and y the scores, each standardised over the sources of a target

    What a target's row says of itself is never used for it: w_t is fitted without
    target t (leave one target out), and without t as a source.

    Args:
      tables: measure -> distances [N, N].
      scores: [N, N]; NaN = not tried.
      names: of the tasks.
      ridge: r.

    Raises:
      ValueError: too few pairs were tried.
    """
    count = len(names)
    z = np.stack([_standardised(_square(x, names)) for x in tables.values()], axis=-1)
    y = _standardised(np.asarray(scores, np.float64))
    known = ~np.eye(count, dtype=bool) & np.isfinite(y)
    found = np.full((count, count), np.nan)
    for t in range(count):
        used = known.copy()
        used[:, t] = used[t, :] = False
        if used.sum() <= z.shape[-1]:
            raise ValueError(
                f"{names[t]}: {int(used.sum())} tried pairs of other tasks for "
                f"{z.shape[-1]} measures; try more pairs, or take fewer measures"
            )
        left, right = z[used], y[used]
        gram = left.T @ left + ridge * np.eye(z.shape[-1])
        found[:, t] = -(z[:, t] @ np.linalg.solve(gram, left.T @ right))
    np.fill_diagonal(found, 0)
    return found


def _standardised(table: np.ndarray) -> np.ndarray:
    """Each column over its sources at mean 0 and deviation 1; constant ones at 0."""
    values = np.array(table, np.float64)
    np.fill_diagonal(values, np.nan)
    values[~np.isfinite(values)] = np.nan
    with np.errstate(invalid="ignore"):
        centred = values - _column(np.nanmean, values)
        spread = _column(np.nanstd, values)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0) * (
        np.where(np.isfinite(values), 1, np.nan)
    )


def _column(function: Callable[..., Any], values: np.ndarray) -> np.ndarray:
    known = np.atleast_1d(np.isfinite(values).any(axis=0))
    return np.array(
        [function(values[:, t]) if known[t] else np.nan for t in range(len(values))]
    )


def _square(table: np.ndarray, names: Sequence[str]) -> np.ndarray:
    found = np.asarray(table, np.float64)
    if found.shape != (len(names),) * 2 or len(names) < 2:
        raise ValueError(
            f"a table of shape {found.shape} for {len(names)} tasks; give [N, N] with "
            "N of 2 or more"
        )
    return found
