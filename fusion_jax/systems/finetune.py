"""Fine-tunes one encoder, or a module beside it, on one task.

The plain way, and the baseline of the others.
"""

import json
import os
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.model_card import model_card
from fusion_jax.checkpoints.module_file import load_module, save_module
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.task import hash_task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.evaluation.bootstrap import interval
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.peft import Module
from fusion_jax.processes import agreed, on_own_device, write_once
from fusion_jax.reports.html import write_report
from fusion_jax.systems.experts import head_key
from fusion_jax.systems.identity import fit_identity
from fusion_jax.systems.modules import (
    Plan,
    described,
    kept_module,
    module_key,
    peft_config,
    plan_module,
    scored,
)
from fusion_jax.systems.outcome import SCHEMA_VERSION, versions
from fusion_jax.systems.problem import Problem, make_problem, starting_params
from fusion_jax.systems.result import Result, timed
from fusion_jax.systems.saved_model import score_splits
from fusion_jax.systems.tasks import cut, read_tasks
from fusion_jax.systems.workdir import open_workdir
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import FitResult, fit
from fusion_jax.types import Params

SYSTEM = "finetune"


def run(
    config: Config,
    workdir: str | os.PathLike[str] = "runs/finetune",
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Fine-tunes the config's encoder on its task; the best epoch by dev is kept.

    With a kind in config.peft the encoder is frozen and a module is trained with a
    head: module/ holds it, model/ the encoder with it where it can be merged.

    Args:
      config: of `systems.defaults.finetune_config`, changed as wished.
      workdir: continued if it holds the same config; finished, it is only read.
      overwrite: replace a run of another config.
      progress: whether to show a progress bar.

    Returns:
      The result; its params are those of model/, or, of a module that cannot be merged,
      the module's alone.

    Raises:
      ConfigChanged: the folder holds a run of another config.
      Diverged: a loss is not finite; names the step.
      ValueError, FileNotFoundError, TaskError: options, files and rows that do not
        fit, each named.
    """
    asked = peft_config(config)  # Options that make no sense leave no folder.
    plain = json.loads(config.to_json())
    folder = open_workdir(workdir, plain, overwrite=overwrite)
    finished = folder / "results.json"
    if agreed(finished.is_file):
        return _read(folder)
    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        encoder = hf.load(config.encoder)
        problem = make_problem(
            _task(config),
            encoder,
            load_tokenizer(encoder.path),
            max_length=config.max_length,
            dtype=config.dtype,
        )
    with timed(seconds, "train"):
        start = starting_params(
            problem,
            encoder.params,
            encoder.params,
            head_key(problem.task.name, config.seed),
        )
        options = FitConfig(
            **{**config.fit.to_dict(), "seed": config.seed, "dtype": config.dtype}
        )
        plan = module = None
        if asked is not None:
            key, name = module_key(config.seed), str(config.encoder)
            plan = plan_module(asked, problem, encoder, start, options, key, name)
        trained = _train(problem, encoder, start, options, plan, folder, progress)
        trained = trained._replace(params=on_own_device(trained.params))
    with timed(seconds, "score"):
        judged, params = problem, trained.params
        if plan is not None:
            module = kept_module(plan, params)
            judged, params = scored(plan, problem, module)
        splits = [split for split in ("dev", "test") if split in problem.encoded]
        scores = score_splits(
            judged, params, splits, tokens_per_batch=config.tokens_per_batch
        )
    about = None if module is None else described(module, start)
    results = finetune_results(plain, problem, scores, trained, seconds, about)
    write_once(
        str(folder),
        lambda: _save(config, problem, encoder, params, module, results, folder),
    )
    if module is not None and not results["module"]["merged"]:
        params = module.params
    return Result(results, folder, params)


def finetune_results(
    config: dict[str, Any],
    problem: Problem,
    scores: dict[str, Scores],
    trained: FitResult,
    seconds: dict[str, float],
    module: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of results.json; what the system has not is null.

    Args:
      config: plain values.
      problem: what was trained.
      scores: split -> scores; no 'test' where the task has no test split.
      trained: of `training.fit`.
      seconds: of each stage.
      module: of `modules.described`, where a module was trained.
    """
    test = scores.get("test")
    return {
        "schema_version": SCHEMA_VERSION,
        "system": SYSTEM,
        "target": problem.task.name,
        "metric": " + ".join(problem.metrics),
        "seed": config["seed"],
        "methods": {
            SYSTEM: {
                "dev": scores["dev"].mean,
                "test": None if test is None else test.mean,
                "test_interval": None if test is None else list(interval(test)),
            }
        },
        "metrics": {
            split: scores[split].values if split in scores else None
            for split in ("dev", "test")
        },
        "coefficients": None,
        "experts": None,
        "candidates": None,
        "module": module,
        "best_epoch": trained.best_epoch,
        "tokens": trained.tokens,
        "rows": {split: len(rows) for split, rows in problem.task.splits.items()},
        "seconds": dict(seconds),
        "versions": versions(),
        "config": config,
    }


def _task(config: Config) -> Task:
    names = (config.target,) if config.target else ()
    tasks = read_tasks(config.data, names, config.seed)
    if len(tasks) != 1:
        raise ValueError(
            f"target: the data has the tasks {', '.join(tasks)}; name one of them"
        )
    task = next(iter(tasks.values()))
    return cut(
        task, shots=config.shots, max_test_rows=config.max_test_rows, seed=config.seed
    )


def _read(folder: Path) -> Result:
    """The result of a finished run."""
    results = json.loads((folder / "results.json").read_text())
    module = results.get("module")
    if module is not None and not module["merged"]:
        return Result(results, folder, load_module(folder / "module").params)
    return Result(results, folder, hf.load(folder / "model").params)


def _train(
    problem: Problem,
    encoder: hf.Checkpoint,
    start: Params,
    options: FitConfig,
    plan: Plan | None,
    folder: Path,
    progress: bool,
) -> FitResult:
    name = problem.task.name
    model, more = problem.model, {}
    if plan is not None:
        model, start, options = plan.model, plan.params, plan.fit
        more = {"peft": plan.start.config.to_json()}
    # A run that starts anew in the same folder must not meet the state of the old.
    identity = fit_identity(problem, encoder, options, **more)
    return fit(
        model,
        start,
        problem.encoded["train"],
        problem.encoded["dev"],
        options,
        kind=problem.kind,
        metrics=problem.metrics,
        workdir=folder,
        name=f"{name}-{identity}",
        progress=progress,
    )


def _save(
    config: Config,
    problem: Problem,
    encoder: hf.Checkpoint,
    params: Params,
    module: Module | None,
    results: dict[str, Any],
    folder: Path,
) -> None:
    """What a run leaves; results.json last: it says that all is there."""
    if module is not None:
        save_module(folder / "module", module)
    if module is None or results["module"]["merged"]:
        _save_model(config, problem, encoder, params, results, folder)
    write_report(results, None, folder / "report.html")
    atomic.write_json(folder / "results.json", results)


def _save_model(
    config: Config,
    problem: Problem,
    encoder: hf.Checkpoint,
    params: Params,
    results: dict[str, Any],
    folder: Path,
) -> None:
    task = problem.task
    scores = results["methods"][SYSTEM]
    card = model_card(
        name=f"{SYSTEM}-{task.name}",
        method=SYSTEM,
        base=str(config.encoder),
        sources=[
            {
                "name": task.name,
                "task": task.kind,
                "rows": results["rows"]["train"],
                "sha256": hash_task(task),
            }
        ],
        coefficients={},
        scores={
            f"{split} ({results['metric']})": scores[split] for split in ("dev", "test")
        },
        kind=task.kind,
        sha256=hf.hash_params(params),
    )
    hf.save(
        folder / "model",
        params,
        encoder.config,
        kind=task.kind,
        labels=task.labels,
        tokenizer_from=encoder.path,
        card=card,
    )
