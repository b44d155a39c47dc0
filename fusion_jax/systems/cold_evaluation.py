"""How good a base is for a task: fine-tuned from it, or a head on it frozen.

One evaluation is one small record, named by everything that decides it; a run that was
stopped finds what it has evaluated, and folds share what they have in common.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from typing import Any

from fusion_jax import atomic
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.data.encoded import hash_encoded
from fusion_jax.evaluation.bootstrap import resample
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.processes import agreed, on_own_device, write_once
from fusion_jax.systems.cold_setting import Setting
from fusion_jax.systems.experts import head_key
from fusion_jax.systems.identity import fit_identity
from fusion_jax.systems.problem import Problem, starting_params
from fusion_jax.systems.stages import stage_config
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import FitResult, fit
from fusion_jax.training.probe import fit_head

FINETUNED, FROZEN, FEW_SHOT = "finetuned", "frozen", "few_shot"
MODES: Mapping[str, str] = {FINETUNED: "finetune", FROZEN: "probe", FEW_SHOT: "few"}
"""Way to evaluate -> field of the config with its options."""

Record = dict[str, Any]
"""'dev', 'test', 'values', 'draws' (the test score on 1000 draws of the items, the same
draws for every base), 'best_epoch', 'rows', 'seconds'."""


def evaluate(setting: Setting, base: hf.Checkpoint, name: str, mode: str) -> Record:
    """Trains on a task from a base and scores the result, or finds the record.

    Every base is evaluated with one draw of the head and one order of the rows.

    Args:
      setting: tasks and options.
      base: {'encoder': ...} of any origin.
      name: of the task.
      mode: of `MODES`.
    """
    problem = (setting.few if mode == FEW_SHOT else setting.problems)[name]
    options = stage_config(setting.config[MODES[mode]], setting.config, setting.seed)
    if mode == FROZEN:
        # Rows without token ids cost the same at any length: one shape serves all.
        options = dataclasses.replace(options, buckets=(problem.max_length,))
    tested = setting.judges[name].problem
    identity = fit_identity(
        problem,
        base,
        options,
        mode=mode,
        test=hash_encoded(tested.encoded["test"]),
        columns=problem.width,
    )
    folder = setting.folder / "evaluations"
    file = folder / f"{name}-{mode}-{identity}.json"
    if agreed(file.is_file):
        return json.loads(file.read_text())
    begun = time.perf_counter()
    workdir = folder / "fits" / f"{name}-{mode}-{identity}"
    key = head_key(name, setting.seed)
    start = starting_params(problem, base.params, setting.encoder.params, key)
    result = _fit(problem, start, options, mode, workdir)
    scores = setting.judges[name].scores(on_own_device(result.params), "test")
    record = _record(problem, result, scores, time.perf_counter() - begun)

    def write() -> None:
        atomic.write_json(file, record)
        shutil.rmtree(workdir, ignore_errors=True)

    write_once(str(file), write)
    return record


def _fit(
    problem: Problem, start: Any, options: FitConfig, mode: str, workdir: Any
) -> FitResult:
    dev = problem.encoded["dev"]
    common: dict[str, Any] = {"kind": problem.kind, "metrics": problem.metrics}
    common |= {"name": f"{problem.task.name}-{mode}", "progress": False}
    if mode == FROZEN:
        # It is over before its state would be written.
        train = problem.encoded["train"]
        return fit_head(
            problem.model,
            start,
            train,
            dev,
            options,
            num_labels=problem.width,
            **common,
        )
    train = problem.train_batches(options)
    return fit(problem.model, start, train, dev, options, workdir=workdir, **common)


def _record(
    problem: Problem, result: FitResult, scores: Scores, seconds: float
) -> Record:
    taken = next(line for line in result.history if line["epoch"] == result.best_epoch)
    return {
        "dev": taken["dev"],
        "test": scores.mean,
        "values": scores.values,
        "draws": [round(float(x), 6) for x in resample(scores)],
        "best_epoch": result.best_epoch,
        "rows": {split: len(rows) for split, rows in problem.encoded.items()},
        "seconds": round(seconds, 3),
    }
