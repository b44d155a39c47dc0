"""The record of the attacks as Markdown."""

from collections.abc import Mapping
from typing import Any

from merge_table import markdown

ALONE, BASE, SCREEN = "honest contributors alone", "base", "screen"


def tables(record: Mapping[str, Any]) -> str:
    """What the screen says, and the accuracy after each fuse without it."""
    machine, sizes, found = record["machine"], record["sizes"], record["found"]
    told = (
        f"{machine['cores']} cores of {machine['processor']}. Honest contributors: "
        f"{', '.join(record['honest'])}; the attacker has {record['attacker']}. "
        f"Accuracy: mean over probes on {', '.join(record['probes'])}, heads of "
        f"{sizes['train']} rows, {sizes['test']} test rows each. The "
        f"base: {found[BASE][BASE]['mean']:.3f}."
    )
    return f"{told}\n\n{screens(record)}\n\n{accuracies(record)}\n"


def screens(record: Mapping[str, Any]) -> str:
    """A row an attack: who is refused by which check."""
    lines = []
    for name, what in record["attacks"].items():
        said = record["found"][name][SCREEN]
        numbers = said["numbers"]
        lines.append(
            [
                what,
                verdict(said["refused"]),
                *(
                    f"{numbers[key]:.2g}" if key in numbers else ""
                    for key in ("relative_norm", "robust_z")
                ),
            ]
        )
    return markdown(("attack", "screen", "relative norm", "robust z"), lines)


def verdict(refused: Mapping[str, list[str]]) -> str:
    """'passes', or by which checks who is refused."""
    if not refused:
        return "passes"
    told = []
    for who, reasons in refused.items():
        checks = ", ".join(reason.partition(":")[0] for reason in reasons)
        told.append(f"refused: {checks}" + (f" ({who})" * (who != "attacker")))
    return "; ".join(told)


def accuracies(record: Mapping[str, Any]) -> str:
    """A row an attack, a column a rule."""
    rows = {ALONE: ALONE, **record["attacks"]}
    lines = [
        [told, *(cell(record["found"][name].get(rule)) for rule in record["rules"])]
        for name, told in rows.items()
    ]
    return markdown(("fused without a screen", *record["rules"]), lines)


def cell(said: Mapping[str, Any] | None) -> str:
    """A mean, that there is none, or nothing where it was not measured."""
    if said is None:
        return ""
    return f"{said['mean']:.3f}" if "mean" in said else "cannot be fused"
