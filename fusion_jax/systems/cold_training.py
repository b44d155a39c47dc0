"""Contributors of one round: trained from one base, handed in without their heads."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.manifests import BaseManifest
from fusion_jax.checkpoints.tensors import read_file, write_file
from fusion_jax.collaboration.repository import Repository
from fusion_jax.collaboration.submission import find, run_id, submit
from fusion_jax.data.task import hash_task
from fusion_jax.processes import agreed, on_own_device, write_once
from fusion_jax.systems.cold_defaults import STACKED
from fusion_jax.systems.cold_jobs import recipe_of, run_contributors
from fusion_jax.systems.cold_setting import Setting
from fusion_jax.systems.cold_tasks import contributor_name
from fusion_jax.systems.experts import head_key
from fusion_jax.systems.problem import Problem, starting_params
from fusion_jax.systems.stages import stage_config
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import FitResult, fit_stack
from fusion_jax.types import Params


class Job(NamedTuple):
    """One contribution, by what it is made from.

    Attributes:
      name: of the task.
      data: hash of the rows.
      how: of the training, plain values.
      run: name of the contribution, by base, data, how and seed.
      head: file of the head that it goes on with; None = a fresh one.
    """

    name: str
    data: str
    how: Mapping[str, Any]
    run: str
    head: Path | None


def train_contributors(
    setting: Setting,
    repository: Repository,
    base: BaseManifest,
    names: Sequence[str],
    *,
    heads: Path,
    fits: Path,
) -> None:
    """Trains the contributors of a base that have not handed in yet.

    All of one kind are one stack: on an accelerator one program, on a CPU one after
    another.

    Args:
      setting: tasks and how to train.
      repository: where bodies go.
      base: that all start from.
      names: tasks of the contributors.
      heads: folder where heads stay, by round.
      fits: folder of unfinished fits, by base: see `drop_fits`.
    """
    seed = round_seed(setting.seed, base.round)
    fit = stage_config(setting.config.fit, setting.config, seed)
    jobs = [_job(setting, base, fit, name, heads) for name in names]

    def missing(job: Job) -> bool:
        return find(repository, base, contributor_name(job.name), job.run) is None

    left = [job for job in jobs if agreed(lambda job=job: missing(job))]
    if not left:
        return
    if setting.config.backend != STACKED:
        names = [job.name for job in left]
        run_contributors(setting, repository.url, names, fit, heads.parent / "jobs")
        return
    start = hf.load(repository.base_folder(base.round))
    stacks: dict[Any, list[Job]] = {}
    for job in left:
        problem = setting.problems[job.name]
        stacks.setdefault((problem.kind, problem.metrics), []).append(job)
    for (kind, metrics), members in stacks.items():
        place = _fits_of(fits, base) / "-".join([kind, *metrics])
        trained = _train(setting, start, members, fit, place)
        for job, (params, scores) in zip(members, trained, strict=True):
            _hand_in(setting, repository, base, job, params, scores, fit.seed, heads)


def expected_runs(
    setting: Setting, base: BaseManifest, names: Sequence[str], heads: Path
) -> set[tuple[str, ...]]:
    """(contributor, run) of the contributions that a base gets from these tasks."""
    seed = round_seed(setting.seed, base.round)
    fit = stage_config(setting.config.fit, setting.config, seed)
    jobs = [_job(setting, base, fit, name, heads) for name in names]
    return {(contributor_name(job.name), job.run) for job in jobs}


def round_seed(seed: int, round_: int) -> int:
    """A seed for each round of a run: of heads, the order of rows, dropout."""
    return 1000 * seed + round_


def drop_fits(fits: Path, base: BaseManifest) -> None:
    """Removes the fits of a base's contributors, once all are handed in."""
    folder = _fits_of(fits, base)
    write_once(str(folder), lambda: shutil.rmtree(folder, ignore_errors=True))


def _fits_of(fits: Path, base: BaseManifest) -> Path:
    return fits / base.weights.sha256[:16]


def _job(
    setting: Setting, base: BaseManifest, fit: FitConfig, name: str, heads: Path
) -> Job:
    problem = setting.problems[name]
    splits = {split: problem.task.splits[split] for split in ("train", "dev")}
    data = hash_task(dataclasses.replace(problem.task, splits=splits))
    head, how = None, recipe_of(problem, fit)
    if setting.config.backend == STACKED:
        # Its head is as wide as the widest of the stack, and drawn so.
        how["columns"] = problem.width
    if setting.config.head == "kept":
        files = (_head_file(heads, r, name) for r in reversed(range(base.round)))
        head = next((file for file in files if agreed(file.is_file)), None)
    if head is not None:
        how["head"] = hf.hash_params(trees.unflatten(read_file(head)))
    run = run_id(base.weights.sha256, data, how, fit.seed)
    return Job(name, data, how, run, head)


def _train(
    setting: Setting,
    start: hf.Checkpoint,
    jobs: Sequence[Job],
    fit: FitConfig,
    place: Path,
) -> list[tuple[Params, dict[str, Any]]]:
    """(parameters, dev score and seconds) of each contributor."""
    problems = [setting.problems[job.name] for job in jobs]
    names = [job.name for job in jobs]
    starts = [
        trees.partition(_start(problem, start, job, fit.seed), fit.frozen)
        for problem, job in zip(problems, jobs, strict=True)
    ]
    # What is frozen is the base's, in all alike.
    shared = starts[0][0]
    result = fit_stack(
        problems[0].model,
        trees.stack([trained for _, trained in starts], names),
        shared,
        [problem.train_batches(fit) for problem in problems],
        [problem.encoded["dev"] for problem in problems],
        fit,
        kind=problems[0].kind,
        metrics=problems[0].metrics,
        names=names,
        workdir=place,
        name="contributor",
        progress=False,
        together=min(setting.config.together, len(jobs)) or None,
    )
    stack = on_own_device(result.params)
    seconds = round(result.seconds / len(jobs), 3)
    return [
        (
            trees.combine(shared, jax.tree.map(lambda x, k=k: x[k], stack)),
            {"dev": _taken(result, name, k)["dev"], "seconds": seconds},
        )
        for k, name in enumerate(names)
    ]


def _start(problem: Problem, start: hf.Checkpoint, job: Job, seed: int) -> Params:
    """The base with a fresh head, or with the contributor's own of an earlier round."""
    key = head_key(job.name, seed)
    params = starting_params(problem, start.params, start.params, key)
    if job.head is None:
        return params
    leaves = {name: jnp.asarray(x) for name, x in read_file(job.head).items()}
    return {**params, "head": trees.unflatten(leaves)["head"]}


def _hand_in(
    setting: Setting,
    repository: Repository,
    base: BaseManifest,
    job: Job,
    params: Params,
    scores: Mapping[str, Any],
    seed: int,
    heads: Path,
) -> None:
    """Keeps the head, hands in the body: in this order, so that no head is lost."""
    file = _head_file(heads, base.round, job.name)

    def write() -> None:
        with atomic.file(file) as staging:
            leaves = trees.flatten({"head": params["head"]})
            write_file(staging, {leaf: np.asarray(x) for leaf, x in leaves.items()})
        submit(
            repository,
            base,
            params,
            contributor=contributor_name(job.name),
            task=job.name,
            data_sha256=job.data,
            rows=len(setting.problems[job.name].encoded["train"]),
            fit=job.how,
            seed=seed,
            scores=scores,
        )

    write_once(f"the contribution of {job.name}", write)


def _head_file(heads: Path, round_: int, name: str) -> Path:
    return heads / f"{round_:06d}" / f"{contributor_name(name)}.safetensors"


def _taken(result: FitResult, name: str, place: int) -> dict[str, Any]:
    """The record of the epoch that was taken."""
    lines = [line for line in result.history if line["expert"] == name]
    taken = result.best_epoch[place]
    return next((line for line in lines if line["epoch"] == taken), lines[-1])
