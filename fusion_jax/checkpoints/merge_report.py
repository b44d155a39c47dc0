"""How each tensor of a merge with statistics came about."""

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.checkpoints.leaves import COPY
from fusion_jax.checkpoints.plan import MergePlan, TensorPlan

REPORT = "merge_report.json"
"""Every tensor with how it was merged, solver, condition, tokens and loss."""

AVERAGE = "weighted_average"
"""The method of tensors without statistics."""

_LOG = "solved.txt"
_HOW = {
    COPY: "copied",
    AVERAGE: "averaged",
    "fisher": "weighted by Fisher",
    "mats": "solved",
    "regmean": "regressed",
}

Entry = Mapping[str, Any]


class ReportLog:
    """What solvers said of each tensor, kept beside a merge that grows.

    A merge that goes on finds what its interrupted run had written.
    """

    def __init__(self, folder: Path) -> None:
        """Takes up the lines that are there."""
        self._file = folder / _LOG
        self._entries: dict[str, Entry] = {}
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        for line in lines:
            with contextlib.suppress(ValueError):  # a crash may have cut the last line
                name, entry = json.loads(line)
                self._entries[name] = entry

    def add(self, name: str, entry: Entry) -> None:
        """Writes one tensor down."""
        self._entries[name] = entry
        # On the disk before the tensor is said to be: a crash then loses neither.
        with self._file.open("a") as file:
            file.write("\n" + json.dumps([name, entry]))
            file.flush()
            os.fsync(file.fileno())

    def entries(self, plan: MergePlan) -> dict[str, Entry]:
        """Every tensor of the plan with its entry."""
        return {
            tensor.name: self._entries.get(tensor.name) or _entry(tensor)
            for tensor in plan.tensors
        }

    def finish(self) -> None:
        """Takes the lines away: what is left is the output."""
        self._file.unlink(missing_ok=True)


def write_report(folder: Path, plan: MergePlan, entries: Mapping[str, Entry]) -> None:
    """Writes `REPORT`."""
    record = {
        "methods": methods_of(plan),
        "counts": counts(entries),
        "tensors": {name: _plain(entry) for name, entry in entries.items()},
    }
    atomic.write_json(folder / REPORT, record)


def methods_of(plan: MergePlan) -> list[str]:
    """Methods of a plan, each once, what is merely averaged or copied last."""
    found = dict.fromkeys(t.method for t in plan.tensors if t.method != COPY)
    return sorted(found, key=lambda method: bool(plan.statistics) and method == AVERAGE)


def counts(entries: Mapping[str, Entry]) -> dict[str, int]:
    """How -> number of tensors: {'regressed (cholesky)': 74, 'averaged': 125}."""
    found = Counter(
        f"{entry['how']} ({entry['solver']})" if "solver" in entry else entry["how"]
        for entry in entries.values()
    )
    return dict(found)


def planned_counts(plan: MergePlan) -> dict[str, int]:
    """`counts`, before any work: solvers are not known."""
    return dict(Counter(_HOW.get(t.method, t.method) for t in plan.tensors))


def described(entry: Entry) -> str:
    """'regressed (cholesky, condition 3e+04)', 'averaged'."""
    said = [str(entry["solver"])] if "solver" in entry else []
    condition = entry.get("condition")
    if condition is not None and math.isfinite(condition):
        said.append(f"condition {condition:.0e}")
    return f"{entry['how']} ({', '.join(said)})" if said else str(entry["how"])


def _entry(tensor: TensorPlan) -> Entry:
    entry: dict[str, Any] = {"how": _HOW.get(tensor.method, tensor.method)}
    if tensor.method == "mats":
        entry |= {
            "solver": "conjugate gradient",
            "most_iterations": tensor.options["iterations"],
        }
    return entry


def _plain(entry: Entry) -> dict[str, Any]:
    """What is not finite is null: JSON has no word for it."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
