"""DFWE: experts fine-tuned on a target, interpolated by gradient-free search.

The system as its abstract describes it (Ninalga 2023, arXiv:2307.03506): build experts
on source tasks, fine-tune each on the target, interpolate them linearly with weights
found by a gradient-free optimiser. What the abstract leaves open is in the config, and
the config is part of every result.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.peft import PeftConfig
from fusion_jax.processes import agreed, write_once
from fusion_jax.search.points import Points
from fusion_jax.systems import experts as stages
from fusion_jax.systems.artefacts import shown, write_artefacts
from fusion_jax.systems.auto_sources import auto_count, source_names
from fusion_jax.systems.dfwe_modules import (
    Searched,
    frozen_host,
    given_modules,
    module_config,
    modules_of,
    searched_modules,
)
from fusion_jax.systems.given import given_experts
from fusion_jax.systems.interpolation import (
    BASE,
    base_is_a_point,
    choose_answer,
    expert_names,
    find_weights,
    groups_of,
    interpolated_points,
    leave_one_out,
    loss_plane,
    merged_model,
    refuse_reserved,
)
from fusion_jax.systems.methods import all_scores, rival_weights, scorer_for
from fusion_jax.systems.modules import module_key
from fusion_jax.systems.multitask import finetune_multitask
from fusion_jax.systems.outcome import dfwe_results, many_results
from fusion_jax.systems.problem import Problem, make_problem, with_modules
from fusion_jax.systems.result import Result, timed
from fusion_jax.systems.several import joined
from fusion_jax.systems.tasks import cut, read_tasks
from fusion_jax.systems.workdir import open_workdir
from fusion_jax.training.config import FitConfig
from fusion_jax.types import Params

logger = logging.getLogger(__name__)


class Setting(NamedTuple):
    """What all runs of one seed share."""

    config: Config
    seed: int
    encoder: hf.Checkpoint
    tokenizer: Any
    tasks: dict[str, Task]
    experts: Path
    peft: PeftConfig | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Those of the config; all tasks where it names none."""
        return tuple(self.config.targets) or tuple(self.tasks)


def run(
    config: Config,
    workdir: str | os.PathLike[str] = "runs/dfwe",
    *,
    overwrite: bool = False,
) -> Result:
    """Runs DFWE for every target and seed of a config.

    Args:
      config: of `systems.defaults.dfwe_config`, changed as wished.
      workdir: continued if it holds the same config.
      overwrite: replace a run of another config.

    Returns:
      The result; with several targets or seeds one folder each and a summary.

    Raises:
      ConfigChanged: the folder holds a run of another config.
      ValueError, FileNotFoundError, TaskError: options, files and rows that do not
        fit, each named.
    """
    if config.seeds < 1:
        raise ValueError(f"seeds: {config.seeds} asked for; at least one run is needed")
    plain = json.loads(config.to_json())
    folder = open_workdir(workdir, plain, overwrite=overwrite)
    finished = []
    for setting in settings(config, folder / "experts"):
        single = len(setting.targets) * config.seeds == 1
        for target in setting.targets:
            place = folder if single else folder / target / f"seed_{setting.seed}"
            finished.append(run_target(setting, target, place))
    return joined(finished, folder, plain, many_results)


def settings(config: Config, experts: Path) -> Iterator[Setting]:
    """The setting of each seed.

    Args:
      config: of the system.
      experts: folder of trained experts, which are found again by their content.
    """
    encoder = hf.load(config.encoder)
    tokenizer = load_tokenizer(encoder.path)
    for seed in range(config.seed, config.seed + config.seeds):
        tasks, peft = _read(config, seed), module_config(config, encoder)
        yield Setting(config, seed, encoder, tokenizer, tasks, experts, peft)


def run_target(setting: Setting, target: str, folder: Path) -> Result:
    """One target and seed: train, stack, search, choose, compare, test, report.

    Args:
      setting: what the runs of a seed share.
      target: name of the task.
      folder: of this run; a finished one is read.
    """
    record = folder / "results.json"
    if agreed(record.is_file):
        params = hf.load(folder / "model").params
        return Result(json.loads(record.read_text()), folder, params)
    config, seed, seconds = setting.config, setting.seed, {}
    logger.info("target %s, seed %d", target, seed)
    with timed(seconds, "data"):
        problem = problem_of(setting, target, config.shots)
    with timed(seconds, "experts"):
        models, start, multitask = train_models(setting, problem)
    with timed(seconds, "stack"):
        judged, points, searched = interpolated(setting, problem, models, start)
        dev = scorer_for(config, judged, "dev", points)
        logger.info("population: %s", dev.population.plan)
    with timed(seconds, "search"):
        found = find_weights(config, dev, seed, folder)
        answer, chosen, on_dev = choose_answer(dev, found)
    with timed(seconds, "comparators"):
        rivals = rival_weights(config, dev, on_dev, seed)
    with timed(seconds, "plane"):
        plane = loss_plane(dev, found.means, config.plane)
        without = leave_one_out(dev, chosen)
    with timed(seconds, "test"):
        methods = {"dfwe": chosen, **rivals}
        scores = {"dev": all_scores(config, dev, methods, multitask)}
        if "test" in problem.encoded:
            test = scorer_for(config, judged, "test", points)
            scores["test"] = all_scores(config, test, methods, multitask)
    results = dfwe_results(
        config=json.loads(config.to_json()),
        problem=problem,
        seed=seed,
        scores=scores,
        experts=expert_names(points),
        points=points,
        chosen=chosen,
        answer=answer,
        without=without,
        candidates=len(found.evaluations),
        evaluated=dev.evaluated,
        plan=str(dev.population.plan),
        seconds=seconds,
    )
    history = {
        "evaluations": [shown(entry) for entry in found.evaluations],
        "means": [np.mean(mean, axis=0).tolist() for mean in found.means],
        "plane": plane,
    }
    module = None if searched is None else searched.module(chosen)
    params = (
        merged_model(points, chosen) if searched is None else searched.merged(chosen)
    )
    write_once(
        str(folder),
        lambda: write_artefacts(
            folder,
            encoder=config.encoder,
            pretrained=setting.encoder,
            problem=problem,
            points=points,
            chosen=chosen,
            params=params,
            module=module,
            results=results,
            history=history,
        ),
    )
    return Result(results, folder, params)


def _read(config: Config, seed: int) -> dict[str, Task]:
    """The tasks named, or all of them where targets or sources are not named.

    Experts that exist need no sources.
    """
    targets = tuple(config.targets)
    sources = () if config.experts else tuple(config.sources)
    if auto_count(sources):
        # Among all there are.
        sources = ()
    named = tuple(dict.fromkeys(targets + sources))
    enough = targets and (sources or config.experts)
    tasks = read_tasks(config.data, named if enough else (), seed)
    unknown = [name for name in named if name not in tasks]
    if unknown:
        raise ValueError(
            f"tasks {', '.join(unknown)} are not among those read: "
            f"{', '.join(tasks)}; correct targets or sources"
        )
    if not config.experts:
        # A task that is the only target is nobody's source.
        alone = targets if len(targets) == 1 else ()
        refuse_reserved([n for n in sources or tasks if n not in alone], "sources")
    astray = [name for name, _ in config.task_lengths if name not in tasks]
    # Where only the named ones are read, others may have lengths too.
    if astray and not enough:
        raise ValueError(
            f"task_lengths: {', '.join(astray)} are not among the tasks: "
            f"{', '.join(tasks)}; correct the names"
        )
    return tasks


def interpolated(
    setting: Setting,
    problem: Problem,
    models: Mapping[str, Any],
    start: Params | None,
) -> tuple[Problem, Points, Searched | None]:
    """What is searched: the points, and the problem with the model that reads them.

    Args:
      setting: what the runs of a seed share.
      problem: the target.
      models: of `train_models`.
      start: likewise.
    """
    config, peft = setting.config, setting.peft
    if peft is None or start is None:
        return problem, interpolated_points(config, models, start), None
    if not config.experts:
        models = modules_of(models, peft, setting.encoder, config.encoder)
    if base_is_a_point(config):
        base = modules_of({BASE: start}, peft, setting.encoder, config.encoder)
        models = {**base, **models}
    found = searched_modules(config, problem, models, start, groups_of(config))
    return found.problem, found.points, found


def problem_of(setting: Setting, name: str, shots: int) -> Problem:
    """A task of a setting, made ready.

    Args:
      setting: what the runs of a seed share.
      name: of the task.
      shots: training rows in all, 0 = all.
    """
    config = setting.config
    task = cut(
        setting.tasks[name],
        shots=shots,
        max_test_rows=config.max_test_rows,
        seed=setting.seed,
    )
    problem = make_problem(
        task,
        setting.encoder,
        setting.tokenizer,
        max_length=dict(config.task_lengths).get(name, config.max_length),
        dtype=config.dtype,
    )
    if setting.peft is None:
        return problem
    return with_modules(problem, setting.peft, module_key(setting.seed))


def train_models(
    setting: Setting, problem: Problem
) -> tuple[dict[str, Any], Params | None, Params | None]:
    """Experts by name, theta_0 with the target's head, and the multi-task model.

    No theta_0 where the experts exist and nothing asks for it: its head is trained.
    Over modules the experts are trees of host and module, or, where they exist, modules
    themselves; theta_0 is always there, and never a multi-task model.
    """
    config, encoder, folder = setting.config, setting.encoder, setting.experts
    tune = _fit_config(setting, config.target)
    if config.experts and setting.peft is not None:
        start = stages.target_start(problem, encoder, tune, folder)
        modules = given_modules(config.experts, start, setting.peft, encoder)
        refuse_reserved(modules, "experts")
        return modules, start, None
    if config.experts:
        models = given_experts(config.experts, config.encoder, problem)
        refuse_reserved(models, "experts")
        start = None
        if base_is_a_point(config):
            start = stages.target_start(problem, encoder, tune, folder)
        return models, start, None
    sources = {
        name: problem_of(setting, name, config.source_shots)
        for name in source_names(
            config, setting.tasks, problem.task.name, encoder, setting.seed
        )
    }
    pretrain = _fit_config(setting, config.source)
    trained = stages.train_sources(sources, encoder, pretrain, folder)
    start = stages.target_start(problem, encoder, tune, folder)
    models = stages.finetune_experts(
        problem,
        encoder,
        start,
        trained,
        tune,
        folder,
        lineage=stages.source_lineage(sources, encoder, pretrain),
    )
    if "multitask_finetune" not in config.comparators or setting.peft is not None:
        return models, start, None
    multitask = finetune_multitask(
        {**sources, problem.task.name: problem},
        problem,
        encoder,
        start,
        _fit_config(setting, config.multitask),
        tune,
        folder,
    )
    return models, start, multitask


def _fit_config(setting: Setting, options: Config) -> FitConfig:
    own = {"seed": setting.seed, "dtype": setting.config.dtype}
    return frozen_host(FitConfig(**{**options.to_dict(), **own}), setting.peft)
