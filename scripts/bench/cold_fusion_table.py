"""The record of the benchmark of a round as Markdown."""

from collections.abc import Mapping
from typing import Any

from merge_table import markdown

MIB = 2**20


def tables(record: Mapping[str, Any]) -> str:
    """All tables of a record, each with a line that says what it shows."""
    machine, versions = record["machine"], record["versions"]["ours"]
    parts = [
        f"{machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gib']:.0f} GiB, Python {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". Load {record['load'][0]:.1f} at the start.",
    ]
    if "round" in record:
        parts += [
            "Seconds of a round by part; those of a contributor are of one, the mean "
            "of all:",
            seconds(record["round"]),
            "What passed, MB of 2**20 bytes, and requests:",
            traffic(record["round"]),
            "Private memory, MB:",
            memory(record["round"]),
        ]
    if "stacked" in record:
        one = record["stacked"]
        parts += [
            f"{one['contributors']} contributors of {one['rows']} rows, real tokens a "
            "second:",
            stacked(one),
        ]
    return "\n\n".join(parts) + "\n"


def seconds(rounds: Mapping[str, Any]) -> str:
    """A row a number of contributors."""
    lines = []
    for count, one in rounds.items():
        trained = [each["seconds"]["train"] for each in one["trained"]]
        fuser = one["fuser"]["seconds"]
        lines.append(
            [
                count,
                f"{contributors(one, 'download'):.2f}",
                f"{sum(trained) / len(trained):.1f}" if trained else "",
                f"{contributors(one, 'upload'):.2f}",
                *(f"{fuser[p]:.2f}" for p in ("download", "screen", "fuse", "promote")),
                f"{one['fuser']['load']:.1f}",
            ]
        )
    head = (
        *("contributors", "download", "train, compiling", "upload"),
        *("fuser: download", "screen", "fuse", "promote", "load"),
    )
    return markdown(head, lines)


def contributors(one: Mapping[str, Any], part: str) -> float:
    """Mean seconds of a part over all contributors of a round."""
    found = [each["seconds"][part] for each in one["trained"]]
    if "derived" in one:
        found += [one["derived"]["seconds"][part]] * one["derived"]["count"]
    return sum(found) / len(found)


def traffic(rounds: Mapping[str, Any]) -> str:
    """A row a number of contributors."""
    lines = []
    for count, one in rounds.items():
        each = list(one["trained"])
        if "derived" in one:
            each += [one["derived"]] * one["derived"]["count"]
        fuser = one["fuser"]
        lines.append(
            [
                count,
                *(
                    f"{sum(x[way] for x in each) / len(each) / MIB:.1f}"
                    for way in ("down", "up")
                ),
                *(f"{fuser[way] / MIB:.1f}" for way in ("down", "up")),
                str(fuser["requests"]),
                f"{fuser['accepted']} / {len(fuser['rejected'])}",
            ]
        )
    head = (
        *("contributors", "a contributor: down", "up"),
        *("fuser: down", "up", "its requests", "accepted / rejected"),
    )
    return markdown(head, lines)


def memory(rounds: Mapping[str, Any]) -> str:
    """A row a number of contributors."""
    methods = list(next(iter(rounds.values()))["alone"])
    lines = []
    for count, one in rounds.items():
        row = [count, f"{one['idle']['anon_mb']:.0f}", f"{one['fuser']['anon_mb']:.0f}"]
        for method in methods:
            alone = one["alone"][method]
            row.append(f"{alone['anon_mb']:.0f} ({alone['seconds']:.1f} s)")
        lines.append(row)
    head = (
        *("contributors", "started, idle", "the whole round"),
        *(f"fuse alone, {method}" for method in methods),
    )
    return markdown(head, lines)


def stacked(one: Mapping[str, Any]) -> str:
    """A row a way."""
    ways = ("one program", "one after another", "processes")
    whole = one["processes"]["tokens"] / one["processes"]["wall"]
    lines = []
    for way in ways:
        found = one[way]
        speed = {part: found["tokens"] / found[part] for part in ("wall", "first")}
        later = found["seconds"]
        lines.append(
            [
                f"{one['contributors']} {way}" if way == "processes" else way,
                *(f"{speed[part]:.0f}" for part in ("wall", "first")),
                f"{found['tokens'] * len(later) / sum(later):.0f}" if later else "",
                f"{found['anon_mb']:.0f}",
                f"{speed['wall'] / whole:.2f}x",
            ]
        )
    head = (
        *("way", "start and compiling counted", "compiling counted", "later calls"),
        *("private MB of a process", "against processes"),
    )
    return markdown(head, lines)
