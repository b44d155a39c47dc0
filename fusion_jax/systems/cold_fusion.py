"""ColD Fusion: a shared base that gets better while contributors keep their data.

The simulation of Don-Yehiya et al. 2023 (arXiv:2212.01378): in every round some tasks
are drawn, each fine-tunes the current base with a head of its own and hands in the body
alone, and the mean of the bodies is the next base. It goes through a real weight
repository, so what is simulated is what groups on many machines do. Bases are held
against the pretrained one, one single fuse, and multi-task training.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_jax import atomic
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.manifests import BaseManifest
from fusion_jax.collaboration.export import export
from fusion_jax.collaboration.repository import Repository
from fusion_jax.collaboration.rounds import fuse_round
from fusion_jax.config import Config
from fusion_jax.processes import agreed, write_once
from fusion_jax.reports.html import write_report
from fusion_jax.systems.cold_check import check_options, rounds_of
from fusion_jax.systems.cold_defaults import fuse_options, limits
from fusion_jax.systems.cold_evaluation import FEW_SHOT, FINETUNED, FROZEN, evaluate
from fusion_jax.systems.cold_outcome import cold_results, many_results, round_scores
from fusion_jax.systems.cold_repository import open_simulated, remove_once
from fusion_jax.systems.cold_scores import Evaluations
from fusion_jax.systems.cold_setting import Setting, prepare
from fusion_jax.systems.cold_tasks import Fold, contributors, folds_of
from fusion_jax.systems.cold_training import drop_fits, train_contributors
from fusion_jax.systems.multitask import train_together
from fusion_jax.systems.result import Result, timed
from fusion_jax.systems.several import joined
from fusion_jax.systems.stages import stage_config
from fusion_jax.systems.workdir import open_workdir

logger = logging.getLogger(__name__)

# Way to evaluate -> field of the config that says which bases are.
_WAYS = {
    FROZEN: "frozen_rounds",
    FINETUNED: "evaluate_rounds",
    FEW_SHOT: "few_shot_rounds",
}


def run(
    config: Config,
    workdir: str | os.PathLike[str] = "runs/cold_fusion",
    *,
    overwrite: bool = False,
) -> Result:
    """Runs every fold and seed of a config.

    Args:
      config: of `systems.cold_defaults.cold_config`, changed as wished.
      workdir: continued if it holds the same config.
      overwrite: replace a run of another config.

    Returns:
      The result; with several folds or seeds one folder each and a summary.

    Raises:
      ConfigChanged: the folder holds a run of another config.
      OtherHistory: the repository was filled by something else.
      ValueError, FileNotFoundError, TaskError: options, files and rows that do not
        fit, each named.
    """
    check_options(config)
    plain = json.loads(config.to_json())
    folder = open_workdir(workdir, plain, overwrite=overwrite)
    encoder = hf.load(config.encoder)
    finished = []
    for seed in range(config.seed, config.seed + config.seeds):
        setting = prepare(config, seed, encoder, folder)
        folds = folds_of(config, setting.names, seed)
        single = len(folds) * config.seeds == 1
        for fold in folds:
            part = "" if single else f"{fold.name}/seed_{seed}"
            finished.append(run_fold(setting, fold, part, overwrite=overwrite))
    return joined(finished, folder, plain, many_results)


def run_fold(
    setting: Setting, fold: Fold, part: str, *, overwrite: bool = False
) -> Result:
    """One fold and seed: the rounds, the baselines, the record.

    Args:
      setting: what the folds of a seed share.
      fold: who contributes.
      part: folder of this run below that of the whole one; '' for the same.
      overwrite: whether a repository of other rounds in the folder may be replaced.
    """
    folder = setting.folder / part
    record = folder / "results.json"
    if agreed(record.is_file):
        return Result(json.loads(record.read_text()), folder, None)
    config, seconds = setting.config, {}
    logger.info("%s, seed %d: %d seen", fold.name, setting.seed, len(fold.seen))
    drawn = [
        contributors(fold.seen, config.contributors, round_, setting.seed)
        for round_ in range(config.rounds)
    ]
    own = str(folder / "repository")
    url = "/".join(x for x in (config.repository.rstrip("/"), part) if x)
    repository = open_simulated(
        setting,
        url if config.repository else own,
        config.encoder,
        drawn,
        cache=folder / "cache",
        heads=folder / "heads",
        replace=overwrite and not config.repository,
    )
    evaluations: list[Evaluations] = []
    for round_ in range(config.rounds + 1):
        evaluations.append(_evaluate_base(setting, fold, repository, round_))
        if round_ < config.rounds:
            advance(setting, repository, round_, drawn[round_], folder)
    found = {"base": evaluations[0], "cold": evaluations[-1]}
    if "one_shot" in config.baselines:
        with timed(seconds, "one_shot"):
            base = one_shot(setting, fold, repository, folder, overwrite=overwrite)
        found["one_shot"] = _evaluate(setting, fold, base)
    drop_fits(folder / "fits", repository.base(0))
    if "multitask" in config.baselines:
        with timed(seconds, "multitask"):
            base = joint_base(setting, fold)
        found["multitask"] = _evaluate(setting, fold, base)
    results = cold_results(
        setting, fold, repository, evaluations, found, baseline_seconds=seconds
    )
    write_once(str(folder), lambda: _write(repository, results, folder))
    return Result(results, folder, None)


def advance(
    setting: Setting,
    repository: Repository,
    round_: int,
    names: Sequence[str],
    folder: Path,
) -> BaseManifest:
    """One round: its contributors train and hand in, and the next base is made of it.

    Args:
      setting: tasks and options.
      repository: with the base of the round.
      round_: of the base that contributors start from.
      names: tasks of the contributors.
      folder: of the run, where heads stay.

    Returns:
      The next base; of a round that is over, the one that is there.
    """
    base, fits = repository.base(round_), folder / "fits"
    if agreed(lambda: repository.current().round == round_):
        logger.info("round %d: %s", round_, ", ".join(names))
        train_contributors(
            setting, repository, base, names, heads=folder / "heads", fits=fits
        )
        _fuse(setting, repository, round_)
        # The single fuse begins with the contributors of the first round.
        if round_ or "one_shot" not in setting.config.baselines:
            drop_fits(fits, base)
        remove_once(repository.cache)
    return repository.base(round_ + 1)


def one_shot(
    setting: Setting,
    fold: Fold,
    repository: Repository,
    folder: Path,
    *,
    overwrite: bool = False,
) -> hf.Checkpoint:
    """All seen tasks contribute to the pretrained base, which is fused once.

    Reference: Choshen et al. 2022, arXiv:2204.03044.
    """
    apart = folder / "one_shot"
    once = open_simulated(
        setting,
        apart / "repository",
        repository.base_folder(0),
        [fold.seen],
        cache=apart / "cache",
        heads=apart / "heads",
        replace=overwrite,
    )
    if agreed(lambda: once.current().round == 0):
        train_contributors(
            setting,
            once,
            once.base(0),
            fold.seen,
            heads=apart / "heads",
            fits=folder / "fits",
        )
        _fuse(setting, once, 0)
    return hf.load(once.base_folder(1))


def joint_base(setting: Setting, fold: Fold) -> hf.Checkpoint:
    """One encoder trained on the rows of all seen tasks at once."""
    config = setting.config
    joint, _ = train_together(
        {name: setting.problems[name] for name in fold.seen},
        setting.encoder,
        stage_config(config.multitask, config, setting.seed),
        setting.folder / "experts",
    )
    params = {"encoder": joint["encoder"]}
    return setting.encoder._replace(params=params, sha256=hf.hash_params(params))


def _fuse(setting: Setting, repository: Repository, round_: int) -> None:
    def fuse() -> None:
        fuse_round(
            repository, fuse_options(setting.config), limits=limits(setting.config)
        )

    write_once(f"base {round_ + 1}", fuse)


def _evaluate_base(
    setting: Setting, fold: Fold, repository: Repository, round_: int
) -> Evaluations:
    """The evaluations that the config asks for of this round's base."""
    ways = [w for w, f in _WAYS.items() if round_ in rounds_of(setting.config, f)]
    if not ways:
        return {}
    base = hf.load(repository.base_folder(round_))
    found = _evaluate(setting, fold, base, ways)
    scores = round_scores(found, fold.seen, fold.unseen)
    logger.info("base %d: %s", round_, json.dumps(scores))
    return found


def _evaluate(
    setting: Setting, fold: Fold, base: hf.Checkpoint, ways: Any = tuple(_WAYS)
) -> Evaluations:
    tasks = {way: fold.unseen if way == FEW_SHOT else setting.names for way in ways}
    return {
        way: {name: evaluate(setting, base, name, way) for name in names}
        for way, names in tasks.items()
        if names
    }


def _write(repository: Repository, results: dict[str, Any], folder: Path) -> None:
    """model/ of the last base, report.html; results.json last: all is there."""
    last = results["rounds"][-1]["round"]
    export(repository, last, folder / "model", overwrite=True)
    write_report(results, None, folder / "report.html")
    atomic.write_json(folder / "results.json", results)
