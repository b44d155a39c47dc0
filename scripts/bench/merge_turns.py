"""The sides of one job by turns, each run in a fresh process, and their ratios."""

import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_processes import measure
from merge_recipes import ROOT

MEASURES = ("wall", "cpu", "anon_mb", "maxrss_mb")
Command = Callable[[Path], Sequence[str | Path]]
"""Folder to write -> words of the command."""


def turns(
    workdir: Path,
    name: str,
    sides: Mapping[str, Command],
    repeats: int,
    inputs: Sequence[Path] = (),
) -> dict[str, Any]:
    """Runs all sides in turns; what the last turn wrote stays in `outputs`.

    Args:
      workdir: of the benchmark.
      name: of the job, for its logs.
      sides: label -> folder to write -> words of the command.
      repeats: turns.
      inputs: files that lie in the page cache before each run.

    Returns:
      side -> runs, the least and median of each measure over those that ended well,
      how many failed, and what the last of these said.
    """
    place = outputs(workdir)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    said_last: dict[str, str] = {}
    for turn in range(repeats):
        # Back and forth, so that no side always follows the same one.
        for side in list(sides)[:: -1 if turn % 2 else 1]:
            out = place / side
            if out.is_dir():
                shutil.rmtree(out)
            if inputs:
                subprocess.run(["cat", *inputs], stdout=subprocess.DEVNULL, check=True)
            log = log_of(workdir, f"{name}-{side}")
            runs[side].append(measure(sides[side](out), log, environment(side)))
            if runs[side][-1]["code"]:
                said_last[side] = tail(log)
    found = {}
    for side, all_runs in runs.items():
        good = [run for run in all_runs if run["code"] == 0]
        found[side] = {
            "runs": all_runs,
            "failed": len(all_runs) - len(good),
            **({"said": said_last[side]} if side in said_last else {}),
        }
        for measured in MEASURES if good else ():
            values = [run[measured] for run in good]
            found[side][measured] = {
                "min": min(values),
                "median": statistics.median(values),
            }
    return found


def ratio(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, float]:
    """Theirs over ours: seconds by the least and the median, memory by the least."""
    found = {
        f"{name}_{kind}": theirs[name][kind] / ours[name][kind]
        for name in ("wall", "cpu")
        for kind in ("min", "median")
    }
    for name in ("anon_mb", "maxrss_mb"):
        found[f"{name}_min"] = theirs[name]["min"] / ours[name]["min"]
    return found


def outputs(workdir: Path) -> Path:
    """The folder of what one merge's sides write."""
    return workdir / "out"


def log_of(workdir: Path, name: str) -> Path:
    """The file of what a job says."""
    (workdir / "logs").mkdir(exist_ok=True)
    return workdir / "logs" / f"{name}.log"


def tail(log: Path) -> str:
    """The end of what a job said."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])


def environment(side: str) -> dict[str, str]:
    """The variables of a side's process."""
    # A compile cache that an earlier run filled is nobody's start.
    hidden = ("FUSION_JAX_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    ours = {"PYTHONPATH": str(ROOT)} if side.startswith("ours") else {}
    return {
        **kept,
        **ours,
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
