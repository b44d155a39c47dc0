"""Contributors of a round as commands of their own: in processes, or on Ray."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.collaboration.jobs import BACKENDS, Job, check
from fusion_jax.data import Task, write_task
from fusion_jax.data.task import hash_task
from fusion_jax.processes import write_once
from fusion_jax.systems.cold_setting import Setting
from fusion_jax.systems.cold_tasks import contributor_name
from fusion_jax.systems.problem import Problem
from fusion_jax.training.config import FitConfig


def recipe_of(problem: Problem, fit: FitConfig) -> dict[str, Any]:
    """What `fusion-jax repository contribute` names a contribution by."""
    return {**fit.decisive(), "max_length": problem.max_length, "shots": 0}


def run_contributors(
    setting: Setting, url: str, names: Sequence[str], fit: FitConfig, folder: Path
) -> None:
    """Runs one command for each contributor, as groups on many machines do.

    Args:
      setting: tasks, and the backend.
      url: of the repository.
      names: tasks of those who have not contributed yet.
      fit: how to train.
      folder: for tasks as folders, the recipe, and models with their heads.

    Raises:
      JobsFailed: some failed for good; what others handed in is in the repository.
    """
    config = setting.config
    place = url if "://" in url else str(Path(url).resolve())
    jobs = [
        _job(place, setting.problems[name], name, fit, folder.resolve())
        for name in names
    ]

    def run() -> None:
        atomic.write_json(folder / "recipe.json", fit.to_json())
        for name in names:
            _write(_own_rows(setting.problems[name]), folder)
        check(BACKENDS[config.backend](jobs, workers=config.workers))
        shutil.rmtree(folder / "caches", ignore_errors=True)

    write_once(f"contributions to {url}", run)


def _job(url: str, problem: Problem, name: str, fit: FitConfig, folder: Path) -> Job:
    who = contributor_name(name)
    words: Mapping[str, Any] = {
        "--data": _place(_own_rows(problem), folder),
        "--task": name,
        "--contributor": who,
        "--recipe": folder / "recipe.json",
        "--seed": fit.seed,
        "--max-length": problem.max_length,
        "--workdir": folder / "contributions",
        # Of its own, as on a machine of its own.
        "--cache": folder / "caches" / who,
    }
    flags = [str(word) for pair in words.items() for word in pair]
    return Job(name, ("repository", "contribute", url, *flags))


def _own_rows(problem: Problem) -> Task:
    """The rows that a contributor has: never those that bases are tested on."""
    splits = {split: problem.task.splits[split] for split in ("train", "dev")}
    return replace(problem.task, splits=splits)


def _place(task: Task, folder: Path) -> Path:
    """Named by its content: a run of other rows meets no leftovers."""
    return folder / "tasks" / f"{contributor_name(task.name)}-{hash_task(task)[:16]}"


def _write(task: Task, folder: Path) -> None:
    place = _place(task, folder)
    if not place.is_dir():
        write_task(task, place)
