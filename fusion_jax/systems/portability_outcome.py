"""results.json of a portability study: a row a run, and what they come to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.systems.outcome import SCHEMA_VERSION, versions

SYSTEM = "portability"
PORTED = "ported"
EQUAL, OTHER = "equal_shapes", "other_sizes"

Row = Mapping[str, Any]
Chosen = Callable[[Row], bool]

_SAME_RUN = ("technique", "origin", "receiver", "origin_data", "receiver_data")


def study_results(
    config: Mapping[str, Any],
    rows: Sequence[Row],
    draws: np.ndarray,
    origins: Sequence[Row],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of results.json.

    Args:
      config: plain values.
      rows: one a run.
      draws: [rows, draws] bootstrap draws of each row's score.
      origins: a record of each origin's module on its own host and data.
      facts: metric, hosts, data, leaks, seconds.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "system": SYSTEM,
        "target": None,
        **facts,
        "head": config["head"],
        "summary": summary(rows, draws),
        "origins": list(origins),
        "runs": list(rows),
        "versions": versions(),
        "config": dict(config),
    }


def summary(rows: Sequence[Row], draws: np.ndarray) -> dict[str, Any]:
    """Means over runs by technique, init and steps, and gains over the controls.

    Hosts of equal shapes and of others are told apart. Intervals are 95 % bootstrap
    over test items, the same draws for all runs on as many items; 'spread' is the
    standard deviation over seeds of a seed's mean.

    Args:
      rows: one a run.
      draws: [rows, draws].
    """
    parts: dict[str, Chosen] = {
        EQUAL: lambda row: row["method"] == "copy",
        OTHER: lambda row: row["method"] != "copy",
    }
    found: dict[str, Any] = {
        "techniques": _names(rows, "technique"),
        "inits": _names(rows, "init"),
        "steps": sorted({row["steps"] for row in rows}),
        "seeds": sorted({row["seed"] for row in rows}),
        "runs": len(rows),
    }
    for part, chosen in parts.items():
        kept = np.array([i for i, row in enumerate(rows) if chosen(row)], int)
        inside = [rows[i] for i in kept]
        found[part] = None
        if inside:
            found[part] = {
                "runs": len(inside),
                "pairs": list(
                    dict.fromkeys(f"{r['origin']}>{r['receiver']}" for r in inside)
                ),
                "scores": _by_technique(inside, draws[kept], _score_entry),
                "gains": _gains(inside, draws[kept]),
                "by_pair": _by(inside, lambda r: f"{r['origin']}>{r['receiver']}"),
                "by_data": _by(
                    inside,
                    lambda r: (
                        "same"
                        if r["origin_data"] == r["receiver_data"]
                        else "different"
                    ),
                ),
            }
    return found


def _by_technique(
    rows: Sequence[Row], draws: np.ndarray, entry: Callable[..., Any]
) -> dict[str, Any]:
    """Records by technique, init and steps."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    for i, row in enumerate(rows):
        key = row["technique"], row["init"], row["steps"]
        groups.setdefault(key, []).append(i)
    found: dict[str, Any] = {}
    for (technique, init, steps), members in groups.items():
        place = found.setdefault(technique, {}).setdefault(init, {})
        place[str(steps)] = entry([rows[i] for i in members], draws[members])
    return found


def _score_entry(rows: Sequence[Row], draws: np.ndarray) -> dict[str, Any]:
    return {
        "score": float(np.mean([row["score"] for row in rows])),
        "interval": _interval(draws),
        "spread": _spread(rows, [row["score"] for row in rows]),
        "runs": len(rows),
    }


def _gains(rows: Sequence[Row], draws: np.ndarray) -> dict[str, Any]:
    """What ported is above a control, by technique, control and steps."""
    where = {_run_key(row): i for i, row in enumerate(rows)}
    pairs: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
    for i, row in enumerate(rows):
        if row["init"] == PORTED:
            continue
        ported = where.get(_run_key({**row, "init": PORTED}))
        if ported is not None:
            key = row["technique"], row["init"], row["steps"]
            pairs.setdefault(key, []).append((ported, i))
    found: dict[str, Any] = {}
    for (technique, control, steps), members in pairs.items():
        ours, theirs = (list(column) for column in zip(*members, strict=True))
        gains = [rows[a]["score"] - rows[b]["score"] for a, b in members]
        place = found.setdefault(technique, {}).setdefault(control, {})
        place[str(steps)] = {
            "mean": float(np.mean(gains)),
            "interval": _interval(draws[ours] - draws[theirs]),
            "spread": _spread([rows[a] for a in ours], gains),
            "better": int(np.sum(np.array(gains) > 0)),
            "of": len(gains),
        }
    return found


def _by(rows: Sequence[Row], group: Callable[[Row], str]) -> dict[str, Any]:
    """Mean scores by group, technique, init and steps."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(map(group, rows)):
        inside = [row for row in rows if group(row) == name]
        found[name] = _by_technique(
            inside,
            np.zeros((len(inside), 1)),
            lambda some, _: float(np.mean([row["score"] for row in some])),
        )
    return found


def _interval(draws: np.ndarray) -> list[float]:
    means = draws.astype(np.float64).mean(axis=0)
    return [float(x) for x in np.quantile(means, [0.025, 0.975])]


def _spread(rows: Sequence[Row], values: Sequence[float]) -> float | None:
    """The deviation over seeds of a seed's mean; None for one seed."""
    seeds: dict[int, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        seeds.setdefault(row["seed"], []).append(value)
    if len(seeds) < 2:
        return None
    return float(np.std([np.mean(some) for some in seeds.values()], ddof=1))


def _run_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in (*_SAME_RUN, "init", "steps", "seed"))


def _names(rows: Iterable[Row], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))
