"""A portability study as a table of text, and the names of its parts."""

from collections.abc import Mapping
from typing import Any

from fusion_jax.reports.tables import ABSENT, Table, interval, number

INITS = {
    "ported": "ported",
    "scratch": "from scratch",
    "gaussian": "Gaussian, each tensor",
    "permuted": "permuted, each tensor",
    "gaussian_module": "Gaussian, whole module",
}
PARTS = {"equal_shapes": "hosts of equal shapes", "other_sizes": "hosts of other sizes"}


def study_table(results: Mapping[str, Any]) -> Table:
    """Technique and init by steps, hosts of all sizes, as text."""
    summary = results["summary"]
    steps = [str(step) for step in summary["steps"]]
    rows = []
    for part, title in PARTS.items():
        if not summary[part]:
            continue
        both = all(summary[name] for name in PARTS)
        for technique, inits in summary[part]["scores"].items():
            for init, entry in inits.items():
                name = f"{technique}, {INITS[init]}"
                name += f" ({title})" if both else ""
                rows.append((name, *(_plain(entry.get(step)) for step in steps)))
    notes = ["mean test score with its 95 % interval"]
    left = sum(one["left_out"] for one in results["leaks"])
    if left:
        notes.append(f"{left} test rows left out that origins had learned from")
    return Table(
        ("technique, init", *map(steps_label, steps)), tuple(rows), "; ".join(notes)
    )


def steps_label(step: str) -> str:
    """How a number of steps is shown."""
    return "zero-shot" if step == "0" else f"{step} steps"


def _plain(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ABSENT
    return f"{number(entry['score'])} {interval(entry['interval'])}"
