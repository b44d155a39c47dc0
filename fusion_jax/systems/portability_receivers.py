"""A cell of the grid: modules of one receiver, trained side by side and scored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.data.batches import bucket_lengths
from fusion_jax.data.encoded import hash_encoded
from fusion_jax.peft.attach import attach
from fusion_jax.systems.portability_grid import Cell, Origin
from fusion_jax.systems.portability_lanes import lane_leaves, origin_of, way_between
from fusion_jax.systems.portability_leaks import draws_of, of_items
from fusion_jax.systems.portability_origins import (
    Trained,
    without,
)
from fusion_jax.systems.portability_setting import DRAWN, Setting, peft_config
from fusion_jax.systems.stages import stage_config
from fusion_jax.systems.workdir import content_hash
from fusion_jax.training.config import FitConfig
from fusion_jax.training.evaluate import DevSets
from fusion_jax.training.score_steps import score_at_steps
from fusion_jax.training.sharding import make_mesh

# Few on a CPU: what the backward pass keeps of the forward pass grows with each lane.
CPU_LANES = 4


def cell_file(setting: Setting, cell: Cell, trained: Mapping[Origin, Trained]) -> Path:
    """Where the rows of a cell stand; the name holds a hash of what decides them."""
    config = setting.config
    problem = setting.problem(cell.host, cell.task, receiver=True)
    identity = content_hash(
        cell=cell,
        origins=[trained[origin_of(cell, lane)].identity for lane in cell.lanes],
        hosts=[setting.hosts[lane.host].sha256 for lane in cell.lanes],
        receiver=setting.hosts[cell.host].sha256,
        drawn=DRAWN,
        train=hash_encoded(problem.encoded["train"]),
        test=hash_encoded(problem.encoded["test"]),
        metrics=problem.metrics,
        # A given module does not say by itself what its data holds.
        unseen=[setting.unseen(lane.task, cell.task).tolist() for lane in cell.lanes],
        fit=_receiver_fit(setting, cell).decisive(),
        technique=config.techniques[cell.technique].to_dict(),
        port=config.port.to_dict(),
        head=config.head,
        steps=list(config.steps),
    )
    return setting.folder / "cells" / f"{cell.name}-{identity}.json"


def run_cell(
    setting: Setting, cell: Cell, trained: Mapping[Origin, Trained], file: Path
) -> None:
    """Trains and scores the lanes of a cell, and writes their rows.

    Args:
      setting: of the study.
      cell: which.
      trained: the origins' modules.
      file: of `cell_file`; bootstrap draws stand beside it. It is there when all is.
    """
    problem = setting.problem(cell.host, cell.task, receiver=True)
    peft = peft_config(setting.config, cell.technique)
    model = attach(problem.model, peft)
    fit = _receiver_fit(setting, cell)
    leaves = lane_leaves(setting, cell, trained)
    names = ["/".join(lane) for lane in cell.lanes]
    shared = without(setting.whole(cell.host, cell.task, cell.seed), leaves[0])
    width = _width(setting, len(leaves))
    # This process's own device: the others of a job do not take part in a cell.
    mesh = make_mesh(devices=jax.local_devices()[:1])
    scores: dict[tuple[int, int], Any] = {}
    diverged: list[int | None] = []
    for start in range(0, len(leaves), width):
        members = list(range(start, min(start + width, len(leaves))))
        # The last ones are filled up, so that one program serves all.
        filled = [members[min(k, len(members) - 1)] for k in range(width)]
        found = score_at_steps(
            model,
            trees.stack([leaves[k] for k in filled], [names[k] for k in filled]),
            shared,
            problem.train_batches(fit),
            DevSets(
                model,
                problem.kind,
                [problem.encoded["test"]] * width,
                metrics=problem.metrics,
                num_labels=problem.width,
                buckets=fit.buckets or bucket_lengths(problem.max_length),
                mesh=mesh,
            ),
            fit,
            tuple(setting.config.steps),
            kind=problem.kind,
            names=[names[k] for k in filled],
            mesh=mesh,
        )
        for place, k in enumerate(members):
            diverged.append(found.diverged[place])
            for step, some in found.scores.items():
                scores[k, step] = some[place]
    _write(setting, cell, scores, diverged, file)


def _receiver_fit(setting: Setting, cell: Cell) -> FitConfig:
    config = setting.config
    fit = stage_config(config.receive, config, cell.seed)
    return replace(fit, learning_rate=setting.learning_rate(cell.technique))


def _width(setting: Setting, lanes: int) -> int:
    width = setting.config.together
    if not width:
        width = CPU_LANES if jax.default_backend() == "cpu" else lanes
    return min(width, lanes)


def _write(
    setting: Setting,
    cell: Cell,
    scores: Mapping[tuple[int, int], Any],
    diverged: Sequence[int | None],
    file: Path,
) -> None:
    rows, kept = [], []
    for k, lane in enumerate(cell.lanes):
        unseen = setting.unseen(lane.task, cell.task)
        method, _ = way_between(
            setting.config,
            setting.hosts[lane.host].config,
            setting.hosts[cell.host].config,
        )
        for step in setting.config.steps:
            score = of_items(scores[k, step], unseen)
            kept.append(score)
            rows.append(
                {
                    "technique": cell.technique,
                    "origin": lane.host,
                    "receiver": cell.host,
                    "origin_data": lane.task,
                    "receiver_data": cell.task,
                    "init": lane.init,
                    "steps": step,
                    "seed": cell.seed,
                    "score": score.mean,
                    "interval": None,
                    "method": method,
                    "items": int(unseen.sum()),
                    "left_out": int((~unseen).sum()),
                    "diverged": diverged[k],
                }
            )
    draws = draws_of(kept)
    for row, drawn in zip(rows, draws, strict=True):
        row["interval"] = [float(x) for x in np.quantile(drawn, [0.025, 0.975])]
    with atomic.file(file.with_suffix(".npy")) as staging, staging.open("wb") as out:
        np.save(out, draws)
    # Last: a cell without it is run again.
    atomic.write_text(file, json.dumps(rows, indent=1, allow_nan=False) + "\n")
