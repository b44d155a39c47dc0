"""Dataless fusion: models of several owners merged by statistics, without their data.

RegMean and what it is compared with (Jin et al. 2023, arXiv:2212.09849): every owner
fine-tunes one pretrained model on private rows and gives away weights and statistics;
the merge sees nothing else. Each group of owners is merged by every method, and scored
in the owners' domains and in domains that none of them knows. What a method leaves to
choose (alpha, a scale) is chosen on the owners' dev rows.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.processes import agreed, write_once
from fusion_jax.systems.dataless_artefacts import ANSWER, write_artefacts
from fusion_jax.systems.dataless_check import (
    check_options,
    check_tasks,
    planned_groups,
)
from fusion_jax.systems.dataless_given import Fusion, Variant
from fusion_jax.systems.dataless_groups import Group
from fusion_jax.systems.dataless_members import Member, rows_of
from fusion_jax.systems.dataless_methods import MERGED
from fusion_jax.systems.dataless_outcome import (
    METHODS,
    SYSTEM,
    many_results,
    not_run,
)
from fusion_jax.systems.dataless_scoring import (
    choose,
    score_chosen,
    score_ensemble,
    score_individual,
    score_models,
    score_owners,
)
from fusion_jax.systems.dataless_setting import Setting
from fusion_jax.systems.dataless_tasks import owners_tasks, unseen_tasks
from fusion_jax.systems.dataless_training import joint_model, train_members
from fusion_jax.systems.judge import Judge
from fusion_jax.systems.outcome import SCHEMA_VERSION, versions
from fusion_jax.systems.problem import Problem, make_problem
from fusion_jax.systems.result import Result, timed
from fusion_jax.systems.several import joined
from fusion_jax.systems.workdir import open_workdir

logger = logging.getLogger(__name__)


def run(
    config: Config,
    workdir: str | os.PathLike[str] = "runs/dataless_fusion",
    *,
    overwrite: bool = False,
) -> Result:
    """Runs every group and seed of a config.

    Args:
      config: of `systems.defaults.dataless_config`, changed as wished.
      workdir: continued if it holds the same config.
      overwrite: replace a run of another config.

    Returns:
      The result; with several groups or seeds one folder each and a summary.

    Raises:
      ConfigChanged: the folder holds a run of another config.
      ValueError, FileNotFoundError, TaskError: options, files and rows that do not
        fit, each named.
    """
    check_options(config)
    plain = json.loads(config.to_json())
    folder = open_workdir(workdir, plain, overwrite=overwrite)
    encoder = hf.load(config.encoder)
    finished = []
    for seed in range(config.seed, config.seed + config.seeds):
        setting = prepare(config, seed, encoder, folder / "experts")
        groups = planned_groups(config, tuple(setting.members))
        single = len(groups) * config.seeds == 1
        for group in groups:
            place = folder if single else folder / group.name / f"seed_{seed}"
            finished.append(run_group(setting, group, place))
    return joined(finished, folder, plain, many_results)


def prepare(config: Config, seed: int, encoder: hf.Checkpoint, folder: Path) -> Setting:
    """Reads the tasks and trains the owners' models of one seed, or finds them."""
    setting = Setting(config, seed, encoder, folder)
    tokenizer = load_tokenizer(encoder.path)

    def problem_of(task: Task) -> Problem:
        length = dict(config.task_lengths).get(task.name, config.max_length)
        return make_problem(
            task, encoder, tokenizer, max_length=length, dtype=config.dtype
        )

    owners, unseen = owners_tasks(config, seed), unseen_tasks(config, seed)
    check_tasks(config, owners, unseen)
    owned = {task.name: problem_of(task) for task in owners}
    models = train_members(config, owned, encoder, seed, folder)
    for name, problem in owned.items():
        setting.members[name] = Member(
            problem, models[name], encoder.config, _options(config, seed)
        )
    problems = {**owned, **{task.name: problem_of(task) for task in unseen}}
    setting.judges = {
        name: Judge(problem, config.tokens_per_batch)
        for name, problem in problems.items()
    }
    return setting


def run_group(setting: Setting, group: Group, folder: Path) -> Result:
    """One group and seed: merge by every method, choose on dev, test, report.

    Args:
      setting: what the groups of a seed share.
      group: whose models are merged.
      folder: of this run; a finished one is read.
    """
    record = folder / "results.json"
    if agreed(record.is_file):
        return Result(json.loads(record.read_text()), folder, None)
    config, seconds = setting.config, {}
    logger.info("group %s, seed %d", group.name, setting.seed)
    members = [setting.members[name] for name in group.members]
    fusion = Fusion(
        members,
        {"encoder": setting.encoder.params["encoder"]},
        setting.shared_labels,
        _options(config, setting.seed),
    )
    methods: dict[str, Any] = {name: not_run() for name in METHODS}
    chosen: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    answer: Variant | None = None
    for name in config.methods:
        with timed(seconds, name):
            if name in MERGED:
                best = choose(setting, members, MERGED[name](fusion))
                answer = best.variant if name == ANSWER else answer
                chosen[name] = {"options": best.variant.chosen, "tried": best.tried}
                layers[name] = _count(best.variant.layers)
                methods[name] = score_chosen(setting, group, best)
            elif name == "individual":
                methods[name] = score_individual(setting, group)
            elif name == "logit_ensemble" and setting.shared_labels:
                methods[name] = score_ensemble(setting, group)
            elif name == "multitask" and group.name in config.multitask_groups:
                model = joint_model(
                    config,
                    {m.name: m.problem for m in members},
                    setting.encoder,
                    setting.seed,
                    setting.folder,
                )
                methods[name] = score_models(setting, group, model)
        logger.info("%s: %s", name, _told(methods[name]))
    results = {
        "schema_version": SCHEMA_VERSION,
        "system": SYSTEM,
        "target": group.name,
        "members": list(group.members),
        "unseen": list(group.unseen),
        "metric": " + ".join(members[0].problem.metrics),
        "seed": setting.seed,
        "methods": methods,
        "chosen": chosen,
        "layers": layers,
        "coefficients": {m.name: 1 / len(members) for m in members},
        "experts": score_owners(setting, group),
        "candidates": sum(len(entry["tried"]) for entry in chosen.values()),
        "rows": rows_of(members),
        "seconds": seconds,
        "versions": versions(),
        "config": json.loads(config.to_json()),
    }
    write_once(
        str(folder),
        lambda: write_artefacts(setting, fusion, answer, results, folder),
    )
    return Result(results, folder, None)


def _options(config: Config, seed: int) -> Config:
    """The config with the seed of the run."""
    options = type(config)(config.to_dict())
    options.seed = seed
    return options


def _count(layers: Mapping[str, str]) -> dict[str, int]:
    return {
        how: list(layers.values()).count(how) for how in sorted(set(layers.values()))
    }


def _told(entry: Mapping[str, Any]) -> str:
    if entry["dev"] is None:
        return "not run"
    parts = [f"dev {entry['dev']:.3f}"]
    for domain in ("in_domain", "out_of_domain"):
        if entry[domain]:
            parts.append(f"{domain.replace('_', ' ')} {entry[domain]['score']:.3f}")
    return ", ".join(parts)
