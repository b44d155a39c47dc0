"""The portability study: what a module trained on one host is worth on another.

Sabry and Belz 2024 (arXiv:2401.14228): modules are trained on an origin (host and
data), put into a receiver (another host, the same or other data), and scored there as
they are and after some steps, beside modules of the technique's own init and modules
sampled from the distribution of the ported one.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.config import Config
from fusion_jax.processes import agreed, write_once
from fusion_jax.systems.portability_check import check_options, check_study
from fusion_jax.systems.portability_grid import Cell, Origin, cells_of, origins_of
from fusion_jax.systems.portability_lanes import check_ports
from fusion_jax.systems.portability_origins import (
    Trained,
    origin_modules,
    origin_scores,
)
from fusion_jax.systems.portability_outcome import study_results
from fusion_jax.systems.portability_receivers import cell_file, run_cell
from fusion_jax.systems.portability_setting import Setting, make_setting
from fusion_jax.systems.result import Result, timed
from fusion_jax.systems.several import recorded
from fusion_jax.systems.workdir import open_workdir

logger = logging.getLogger(__name__)


def run(
    config: Config,
    workdir: str | os.PathLike[str] = "runs/portability",
    *,
    overwrite: bool = False,
) -> Result:
    """Runs the grid: technique x hosts x data x init x steps x seed.

    Args:
      config: of `systems.portability_defaults.portability_config`, changed as wished.
      workdir: continued if it holds the same config; cells that are there are read.
      overwrite: replace a run of another config.

    Returns:
      The result; its 'runs' are the rows of the study.

    Raises:
      ConfigChanged: the folder holds a run of another config.
      ValueError, FileNotFoundError, TaskError: options, files and rows that do not
        fit, each named.
    """
    check_options(config)
    plain = json.loads(config.to_json())
    folder = open_workdir(workdir, plain, overwrite=overwrite)
    finished = folder / "results.json"
    if agreed(finished.is_file):
        return Result(json.loads(finished.read_text()), folder, None)
    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        setting = make_setting(config, folder)
        check_study(setting)
        cells = cells_of(config, tuple(setting.receivers))
        check_ports(setting, cells)
    files: list[Path] = []
    homes: list[dict[str, Any]] = []
    # A technique is finished before the next begins: what is there can be looked at.
    for technique in config.techniques:
        mine = [cell for cell in cells if cell.technique == technique]
        with timed(seconds, f"{technique}: origins"):
            trained = origin_modules(setting, origins_of(mine))
            homes += origin_scores(setting, trained)
        with timed(seconds, f"{technique}: receivers"):
            files += _run_cells(setting, mine, trained)
    rows, draws = read_cells(files)
    results = study_results(plain, rows, draws, homes, _facts(setting, cells, seconds))
    return recorded(results, folder)


def _run_cells(
    setting: Setting, cells: Sequence[Cell], trained: Mapping[Origin, Trained]
) -> list[Path]:
    """Runs the cells that are not there yet; the files of all."""
    files = []
    for number, cell in enumerate(cells):
        file = cell_file(setting, cell, trained)
        files.append(file)
        if agreed(file.is_file):
            continue
        begun = time.perf_counter()

        def write(cell: Cell = cell, file: Path = file) -> None:
            run_cell(setting, cell, trained, file)

        write_once(str(file), write)
        logger.info(
            "cell %d of %d, %s: %d runs in %.1f s",
            number + 1,
            len(cells),
            cell.name,
            len(cell.lanes) * len(setting.config.steps),
            time.perf_counter() - begun,
        )
    return files


def read_cells(files: Sequence[Path]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows and their bootstrap draws [rows, draws] of finished cells."""
    rows = [row for file in files for row in json.loads(file.read_text())]
    draws = np.concatenate([np.load(file.with_suffix(".npy")) for file in files])
    return rows, draws


def _facts(
    setting: Setting, cells: Sequence[Cell], seconds: dict[str, float]
) -> dict[str, Any]:
    """What a study says beside its runs."""
    problem = setting.problem(cells[0].host, cells[0].task, receiver=True)
    combinations = dict.fromkeys(
        (lane.task, cell.task) for cell in cells for lane in cell.lanes
    )
    leaks = [
        {
            "origin_data": origin,
            "receiver_data": receiver,
            "left_out": int((~setting.unseen(origin, receiver)).sum()),
            "of": len(setting.unseen(origin, receiver)),
        }
        for origin, receiver in combinations
    ]
    return {
        "metric": " + ".join(problem.metrics),
        "hosts": {name: dict(setting.host(name).record) for name in setting.hosts},
        "data": {
            name: {split: len(rows) for split, rows in task.splits.items()}
            for name, task in setting.receivers.items()
        },
        "leaks": leaks,
        "seconds": seconds,
    }
