"""One contributor of ColD Fusion: the latest base, fine-tuned on private rows."""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.manifests import BaseManifest, ContributionManifest
from fusion_jax.collaboration.layout import part
from fusion_jax.collaboration.repository import Repository
from fusion_jax.collaboration.submission import find, run_id, submit
from fusion_jax.data import Task, load_task, split_off_dev
from fusion_jax.data.task import hash_task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems.defaults import SOURCE
from fusion_jax.systems.experts import fitted_once, head_key
from fusion_jax.systems.problem import make_problem, starting_params
from fusion_jax.systems.saved_model import score_splits
from fusion_jax.systems.saved_statistics import save_statistics
from fusion_jax.systems.tasks import cut
from fusion_jax.training.config import FitConfig
from fusion_jax.types import Params

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contribution:
    """What a contributor did.

    Attributes:
      manifest: as it is in the repository.
      model: local folder of the whole model, whose head stays here; None where the
        contribution was there already, or the model was trained elsewhere.
      fresh: False where the repository had it already and nothing was done.
    """

    manifest: ContributionManifest
    model: Path | None
    fresh: bool


def contribute(
    repository: Repository,
    data: str | os.PathLike[str],
    *,
    task: str = "",
    contributor: str = "",
    fit: FitConfig | None = None,
    max_length: int = 128,
    shots: int = 0,
    model: str | os.PathLike[str] | None = None,
    licence: str = "",
    statistics: str = "",
    examples: int = 1000,
    workdir: str | os.PathLike[str] = "runs/contributions",
) -> Contribution:
    """Fine-tunes the newest base on a task and hands in its body.

    The rows and the head stay here. The same job given again finds what it handed in;
    one that was stopped goes on where it was.

    Args:
      repository: with the base.
      data: the task's folder, or one that holds it under the task's name.
      task: name of the task; default the folder's.
      contributor: who; default the task's name.
      fit: how to train; its seed draws the head and the order of rows. Default the
        recipe of an expert.
      max_length: tokens of an input.
      shots: training rows in all; 0 = all.
      model: a model folder that was fine-tuned from the newest base elsewhere, which
        is handed in as it is.
      licence: of the data, where it may be told.
      statistics: 'gram' or 'fisher', handed in beside the body for rounds that are
        fused by regmean, mats or fisher; '' for none.
      examples: training rows that they are sums over.
      workdir: for the state of the training and the finished model.

    Returns:
      The contribution.

    Raises:
      TaskError, CheckpointError, ValueError: data, model or options that do not fit.
      RepositoryError, StoreError: the repository is damaged or cannot be reached.
      Diverged: a loss is not finite.
    """
    if statistics and model is not None:
        raise ValueError("statistics: they need the model's head; leave out model")
    base = repository.current()
    fit = fit or FitConfig(**SOURCE)
    whole = _task(data, task, shots, fit.seed)
    name = part(contributor or task or whole.name)
    given = None if model is None else hf.load(model)
    recipe: dict[str, Any] = {**fit.decisive(), "max_length": max_length}
    recipe["shots"] = shots
    if given is not None:
        recipe = {"given": hf.hash_params({"encoder": given.params["encoder"]})}
    if statistics:
        recipe |= {"statistics": statistics, "examples": examples}
    digest = hash_task(whole)
    run = run_id(base.weights.sha256, digest, recipe, fit.seed)
    found = find(repository, base, name, run)
    if found is not None:
        logger.info("%s has contributed this to base %d already", name, base.round)
        return Contribution(found, None, fresh=False)
    if given is None:
        place = Path(workdir) / "models" / f"{whole.name}-{run}"
        body, scores = _train(repository, base, whole, fit, max_length, place)
    else:
        place, body, scores = None, given.params, {}

    def write_statistics(body: Path, file: Path) -> None:
        assert place is not None
        save_statistics(
            place,
            _folder(data, task),
            file,
            kind=statistics,
            examples=examples,
            max_length=max_length,
            outputs=statistics == "gram",
            seed=fit.seed,
            body=body,
        )

    manifest = submit(
        repository,
        base,
        body,
        contributor=name,
        task=task or whole.name,
        data_sha256=digest,
        rows=len(whole.rows("train")),
        fit=recipe,
        seed=fit.seed,
        scores=scores,
        licence=licence,
        statistics=write_statistics if statistics else None,
    )
    return Contribution(manifest, place, fresh=True)


def _folder(data: str | os.PathLike[str], name: str) -> Path:
    """The task's folder, which may lie below `data` under its name."""
    below = Path(data) / name
    return below if name and below.is_dir() else Path(data)


def _task(data: str | os.PathLike[str], name: str, shots: int, seed: int) -> Task:
    whole = load_task(_folder(data, name), seed=seed, use_partial=True)
    task = split_off_dev(whole, seed)
    # Test rows play no part in a contribution.
    splits = {split: task.rows(split) for split in ("train", "dev")}
    return cut(replace(task, splits=splits), shots=shots, max_test_rows=0, seed=seed)


def _train(
    repository: Repository,
    base: BaseManifest,
    task: Task,
    fit: FitConfig,
    max_length: int,
    place: Path,
) -> tuple[Params, dict[str, float]]:
    encoder = hf.load(repository.base_folder(base.round))
    problem = make_problem(
        task,
        encoder,
        load_tokenizer(encoder.path),
        max_length=max_length,
        dtype=fit.dtype,
        splits=("train", "dev"),
    )
    # A fresh head a round: what the paper's "same procedure" is taken to mean.
    start = starting_params(
        problem, encoder.params, encoder.params, head_key(task.name, fit.seed)
    )
    params = fitted_once(
        task.name, problem, encoder, start, fit, place.parent.parent / "experts"
    )
    dev = score_splits(problem, params, ["dev"])["dev"]
    hf.save(
        place,
        params,
        encoder.config,
        kind=task.kind,
        labels=task.labels,
        tokenizer_from=encoder.path,
    )
    return params, {"dev": dev.mean, **dev.values}
