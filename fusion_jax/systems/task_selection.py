"""Task selection: which source will help a target, before training on it.

The pipeline of Pugantsov and McCreadie (2023, arXiv:2302.05735): represent every task
by its texts, measure the divergence of all ordered pairs, keep the nearest sources of
each target, tune those alone, and try them on the target zero-shot. With `pairs='all'`
every pair is tuned, so that it can be said what each measure would have saved and lost.
"""

import json
import logging
import os
from typing import Any

import numpy as np

from fusion_jax.config import Config
from fusion_jax.processes import agreed
from fusion_jax.reports.selection import write_selection
from fusion_jax.systems.few_shot_pairs import few_shot
from fusion_jax.systems.result import Result, timed
from fusion_jax.systems.selection_check import check_options
from fusion_jax.systems.selection_defaults import CONTROL, order_of
from fusion_jax.systems.selection_ledger import ledger
from fusion_jax.systems.selection_measures import Measured, measure_tasks
from fusion_jax.systems.selection_outcome import selection_results, table_of
from fusion_jax.systems.selection_quality import judge_orders
from fusion_jax.systems.selection_setting import Setting, make_ready, prepare
from fusion_jax.systems.selection_tasks import check_enough
from fusion_jax.systems.several import recorded
from fusion_jax.systems.workdir import open_workdir
from fusion_jax.systems.zero_shot import zero_shot
from fusion_jax.transfer.ranking import kept

logger = logging.getLogger(__name__)


def run(
    config: Config,
    workdir: str | os.PathLike[str] = "runs/task_selection",
    *,
    overwrite: bool = False,
) -> Result:
    """Measures, chooses, tunes and judges.

    Args:
      config: of `selection_defaults.selection_config`, changed as wished.
      workdir: continued if it holds the same config; finished, it is only read.
      overwrite: replace a run of another config.

    Returns:
      The result; without a model.

    Raises:
      ConfigChanged: the folder holds a run of another config.
      ValueError, FileNotFoundError, TaskError: options, files and rows that do not
        fit, each named.
    """
    check_options(config)
    order = order_of(config)
    folder = open_workdir(workdir, json.loads(config.to_json()), overwrite=overwrite)
    record = folder / "results.json"
    if agreed(record.is_file):
        return Result(json.loads(record.read_text()), folder, None)
    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        setting = prepare(config, folder)
    with timed(seconds, "measures"):
        measured = _measured(setting)
        make_ready(setting, measured.names)
    names = measured.names
    chosen = kept(measured.ranked[order], config.keep)
    tried = ~np.eye(len(names), dtype=bool) if config.pairs == "all" else chosen
    with timed(seconds, "zero_shot"):
        rows = zero_shot(setting, _targets(names, tried))
    with timed(seconds, "few_shot"):
        few = few_shot(setting, _targets(names, chosen)) if config.few_shot else None
    judged = None
    if config.pairs == "all":
        with timed(seconds, "judging"):
            judged = judge_orders(
                measured,
                table_of(rows, names, "score"),
                table_of(rows, names, "confidence"),
                order,
            )
    tuned = [
        cell["seconds"][config.clock]
        for cells in (few or {}).values()
        for cell in cells.values()
        if cell["seconds"][config.clock] is not None
    ]
    results = selection_results(
        setting,
        measured,
        chosen,
        rows,
        few,
        judged,
        ledger(
            measured,
            rows,
            judged,
            order,
            config.keep,
            float(np.mean(tuned)) if tuned else None,
            config.clock,
        ),
        seconds,
    )
    return recorded(results, folder, write_selection)


def _measured(setting: Setting) -> Measured:
    """Distances of all tasks, and the word on those that cannot be compared."""
    config = setting.config
    measured = measure_tasks(
        list(setting.read.whole.values()),
        config.measures,
        controls=(CONTROL,),
        encoder=setting.encoder,
        tokenizer=setting.tokenizer,
        layers=config.layers,
        texts=config.texts,
        budget=config.budget,
        max_length=config.max_length,
        seed=config.seed,
        cache=setting.folder / "representations",
    )
    left_out: dict[str, Any] = {**setting.read.left_out, **measured.left_out}
    for name, why in left_out.items():
        logger.warning("%s is left out: %s", name, why)
    check_enough(measured.names, left_out)
    return measured


def _targets(names: tuple[str, ...], table: np.ndarray) -> dict[str, tuple[str, ...]]:
    """Source -> the targets of its row."""
    return {
        name: tuple(t for t, wanted in zip(names, row, strict=True) if wanted)
        for name, row in zip(names, table, strict=True)
    }
