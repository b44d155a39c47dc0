"""The record of the benchmark of merges by statistics as Markdown."""

from collections.abc import Mapping
from typing import Any

from merge_table import markdown

TITLES = {"regmean": "RegMean", "fisher": "Fisher merging"}
MEASURES = ("wall s (median)", "user + sys s", "private MB", "maxRSS MB", "load")


def tables(record: Mapping[str, Any]) -> str:
    """All tables of a record, each with a line that says what it shows."""
    machine, versions = record["machine"], record["versions"]
    parts = [
        f"{machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gib']:.0f} GiB, Python {machine['python']}; "
        + "; ".join(
            f"{side}: " + ", ".join(f"{name} {v}" for name, v in own.items())
            for side, own in versions.items()
        )
        + f". GPT-2 classifiers of {record['model']['parameters'] / 1e6:.1f} M "
        f"parameters, {record['examples']} rows of {record['tokens']} tokens a model, "
        f"batches of {record['batch']}. Least of {record['repeats']} runs that took "
        "turns; ratios are theirs over ours.",
    ]
    for part, title in TITLES.items():
        if part in record:
            parts += [f"{title}, four models:", sides(record[part])]
            parts += [phases(record[part]["phases"]), agreement(record[part])]
    if "growth" in record:
        parts += ["Ours with more models:", growth(record["growth"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def sides(one: Mapping[str, Any]) -> str:
    """A row a side, with the peer's ratio to it."""
    head = (
        *("side", "runs", *MEASURES),
        *("theirs / ours: wall", "user + sys", "private"),
    )
    lines = []
    for side, runs in one["sides"].items():
        ratios = one["ratios"].get(f"fusion_bench / {side}", {})
        told = [
            f"{ratios[name]:.2f}" if name in ratios else ""
            for name in ("wall_min", "cpu_min", "anon_mb_min")
        ]
        lines.append([side, *measures(runs), *told])
    return markdown(head, lines)


def measures(runs: Mapping[str, Any]) -> list[str]:
    """How many runs, and what they took; all blank where none ended well."""
    count = f"{len(runs['runs'])}"
    if runs["failed"]:
        count += f" ({runs['failed']} failed)"
    if "wall" not in runs:
        return [count, *[""] * len(MEASURES)]
    return [
        count,
        f"{runs['wall']['min']:.2f} ({runs['wall']['median']:.2f})",
        f"{runs['cpu']['min']:.2f}",
        f"{runs['anon_mb']['min']:.0f}",
        f"{runs['maxrss_mb']['min']:.0f}",
        f"{max(run['load'] for run in runs['runs']):.1f}",
    ]


def phases(sides: Mapping[str, Mapping[str, float]]) -> str:
    """Seconds of each of our phases; compiling is part of the others."""
    return "\n".join(
        f"{side}, last run: " + ", ".join(f"{n} {s:.2f} s" for n, s in own.items())
        for side, own in sides.items()
    )


def agreement(one: Mapping[str, Any]) -> str:
    """Differences of what our ways wrote."""
    lines = [
        [
            *(pair, found.get("where", "first layer"), f"{found['max_abs']:.2g}"),
            f"{found['moved']:.2g}" if "moved" in found else "",
        ]
        for pair, found in one.get("agreement", {}).items()
    ]
    head = ("files", "where", "largest difference", "formula to plain mean")
    return markdown(head, lines) if lines else ""


def growth(ways: Mapping[str, Any]) -> str:
    """A row a way and number of models."""
    lines = [
        [way, count, *measures(runs)]
        for way, counts in ways.items()
        for count, one in counts.items()
        for runs in one["sides"].values()
    ]
    return markdown(("way", "models", "runs", *MEASURES), lines)
