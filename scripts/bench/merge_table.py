"""The record of the merge benchmark as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    *("merge", "side", "wall s (median)", "user + sys s", "private MB", "maxRSS MB"),
    *("load", "theirs / ours: wall", "user + sys", "private"),
)


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
        + f". Least of {record['repeats']} runs that took turns.",
        "Start (--help):",
        markdown(HEAD, rows("start", record["start_up"])),
    ]
    for family, size in record["families"].items():
        told = f"{family}, {size['parameters'] / 1e6:.1f} M parameters"
        methods = record["commands"].get(family, {})
        if methods:
            lines = [row for name, one in methods.items() for row in rows(name, one)]
            parts += [f"Commands, {told}:", markdown(HEAD, lines)]
            parts += [agreement(methods), disk(methods)]
        methods = record["in_memory"].get(family, {})
        if methods:
            parts += [f"In memory, {told}:", memory(methods)]
    return "\n\n".join(part for part in parts if part) + "\n"


def rows(method: str, one: Mapping[str, Any]) -> list[list[str]]:
    """A row a side."""
    against = {
        pair.split(" / ")[0]: ratios for pair, ratios in one.get("ratios", {}).items()
    }
    lines = []
    for side, runs in one["sides"].items():
        if "wall" not in runs:
            lines.append([method, side, "failed", *[""] * (len(HEAD) - 3)])
            continue
        ratios = against.get(side, {})
        load = max(run["load"] for run in runs["runs"])
        lines.append(
            [
                method,
                side + (f" ({runs['failed']} failed)" if runs["failed"] else ""),
                f"{runs['wall']['min']:.2f} ({runs['wall']['median']:.2f})",
                f"{runs['cpu']['min']:.2f}",
                f"{runs['anon_mb']['min']:.0f}",
                f"{runs['maxrss_mb']['min']:.0f}",
                f"{load:.1f}",
                *(
                    f"{ratios[name]:.2f}" if name in ratios else ""
                    for name in ("wall_min", "cpu_min", "anon_mb_min")
                ),
            ]
        )
    return lines


def agreement(methods: Mapping[str, Any]) -> str:
    """Differences of exact merges, and the moments of random ones."""
    exact = [
        [
            *(method, pair, f"{one['max_abs']:.2g}", one["where"] or "-"),
            f"{100 * one['different']:.3g} %",
            *(str(one["at_base"]), str(len(one["only_in_one"]))),
        ]
        for method, found in methods.items()
        for pair, one in found.get("agreement", {}).items()
    ]
    drawn = [
        [
            *(method, side, f"{one['mean_over_exact_std']:.2e}"),
            *(f"{one['std_over_exact_std']:.4f}", f"{one['slope']:.4f}"),
        ]
        for method, found in methods.items()
        for side, one in found.get("moments", {}).items()
    ]
    told = []
    if exact:
        head = (
            "merge",
            "files",
            "largest difference",
            "where",
            "above 1e-6",
            "left at base",
            "unpaired",
        )
        told += ["Agreement of the merged files:", markdown(head, exact)]
    if drawn:
        head = ("merge", "side", "mean / exact std", "std / exact std", "slope")
        told += [
            "Random masks: merged task vectors beside the exact sum:",
            markdown(head, drawn),
        ]
    return "\n\n".join(told)


def disk(methods: Mapping[str, Any]) -> str:
    """Our linear merge beside reading and writing alone."""
    found = methods.get("linear", {}).get("disk")
    if not found:
        return ""
    return (
        f"Linear, from command to synced files: {found['ours_gb_per_second']:.2f} GB/s "
        f"read and written; cat and a synced copy: {found['disk_gb_per_second']:.2f} "
        f"GB/s; the merge takes place at {100 * found['share']:.0f} % of that."
    )


def memory(methods: Mapping[str, Any]) -> str:
    """Merges of arrays."""
    head = (
        *("merge", "ours s (first call)", "mergekit s (first call)"),
        "mergekit / ours",
    )
    return markdown(
        head,
        [
            [
                method,
                *(timed(one.get(side)) for side in ("ours", "mergekit")),
                f"{one['ratio']:.2f}" if "ratio" in one else "",
            ]
            for method, one in methods.items()
        ],
    )


def timed(one: Mapping[str, Any] | None) -> str:
    """Least seconds and those of the first call."""
    if one is None:
        return ""
    return f"{one['min']:.3f} ({one['first']:.3f})" if "min" in one else "failed"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; the first two columns are words."""
    rule = ["---" if place < 2 else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
