"""Dataless fusion: models of several owners merged by statistics, without their data.

RegMean and what it is compared with (Jin et al. 2023, arXiv:2212.09849): every owner
fine-tunes one pretrained model on private rows and gives away weights and statistics;
the merge sees nothing else. Each group of owners is merged by every method, and scored
in the owners' domains and in domains that none of them knows. What a method leaves to
choose (alpha, a scale) is chosen on the owners' dev rows.
"""

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion_jax import atomic, trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.model_card import model_card
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.processes import agreed, write_once
from fusion_jax.reports.html import write_report
from fusion_jax.search.ensemble import label_ensemble
from fusion_jax.systems.dataless_check import (
    check_options,
    check_tasks,
    planned_groups,
)
from fusion_jax.systems.dataless_groups import Group
from fusion_jax.systems.dataless_members import Member, owners_of, rows_of
from fusion_jax.systems.dataless_methods import MERGED, Fusion, Variant
from fusion_jax.systems.dataless_outcome import (
    METHODS,
    SYSTEM,
    many_results,
    mean_score,
    method_entry,
    not_run,
)
from fusion_jax.systems.dataless_tasks import owners_tasks, unseen_tasks
from fusion_jax.systems.dataless_training import joint_model, train_members
from fusion_jax.systems.judge import Judge
from fusion_jax.systems.outcome import SCHEMA_VERSION, versions
from fusion_jax.systems.problem import Problem, make_problem
from fusion_jax.systems.result import Result, timed
from fusion_jax.systems.workdir import open_workdir
from fusion_jax.types import Model, Params

logger = logging.getLogger(__name__)

ANSWER = "regmean"
"""The method whose merge is saved as model/."""

# Model of a member's task, or of an unseen one (no member) -> its scores on a split.
Models = Callable[[Member | None], Sequence[Params]]


@dataclass
class Setting:
    """What all groups of one seed share.

    Attributes:
      config: of the system.
      seed: of the run.
      encoder: theta_0.
      folder: of trained models, which are found again by their content.
      members: task -> owner.
      judges: task -> scorer, of unseen tasks too.
    """

    config: Config
    seed: int
    encoder: hf.Checkpoint
    folder: Path
    members: dict[str, Member] = field(default_factory=dict)
    judges: dict[str, Judge] = field(default_factory=dict)

    @property
    def shared_labels(self) -> bool:
        """Whether all tasks have one label space."""
        return self.config.labels == "shared"


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
    if len(finished) == 1:
        return finished[0]
    total = many_results([result.results for result in finished], plain)

    def write() -> None:
        write_report(total, None, folder / "report.html")
        atomic.write_json(folder / "results.json", total)

    write_once(str(folder), write)
    return Result(total, folder, None)


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
                variant, tried = _choose(setting, members, MERGED[name](fusion))
                answer = variant if name == ANSWER else answer
                chosen[name] = {"options": variant.chosen, "tried": tried}
                layers[name] = _count(variant.layers)
                methods[name] = _entry(setting, group, _models(variant, members))
            elif name == "individual":
                methods[name] = _entry(setting, group, _individual(members))
            elif name == "logit_ensemble" and setting.shared_labels:
                methods[name] = _ensemble(setting, group, members)
            elif name == "multitask" and group.name in config.multitask_groups:
                model = joint_model(
                    config,
                    {m.name: m.problem for m in members},
                    setting.encoder,
                    setting.seed,
                    setting.folder,
                )
                methods[name] = _entry(setting, group, model)
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
        "experts": _experts(setting, members),
        "candidates": sum(len(entry["tried"]) for entry in chosen.values()),
        "rows": rows_of(members),
        "seconds": seconds,
        "versions": versions(),
        "config": json.loads(config.to_json()),
    }
    write_once(
        str(folder),
        lambda: _write(setting, fusion, answer, results, folder),
    )
    return Result(results, folder, None)


def _options(config: Config, seed: int) -> Config:
    """The config with the seed of the run."""
    options = type(config)(config.to_dict())
    options.seed = seed
    return options


def _choose(
    setting: Setting, members: Sequence[Member], variants: Any
) -> tuple[Variant, list[dict[str, Any]]]:
    """The variant that is best on the members' dev rows, and what was tried."""
    best, top, tried = None, -np.inf, []
    for variant in variants:
        scores = {
            member.name: [
                setting.judges[member.name].scores(variant.params_for(member), "dev")
            ]
            for member in members
        }
        dev = mean_score(scores)
        tried.append({**variant.chosen, "dev": dev})
        if dev > top:
            best, top = variant, dev
    assert best is not None
    return best, tried


def _models(variant: Variant, members: Sequence[Member]) -> Models:
    # An unseen domain is scored with the merged head, which is one for all.
    return lambda member: [variant.params_for(member or members[0])]


def _individual(members: Sequence[Member]) -> Models:
    def models(member: Member | None) -> list[Params]:
        return [m.params for m in ([member] if member else members)]

    return models


def _entry(setting: Setting, group: Group, models: Models) -> dict[str, Any]:
    def scores_on(name: str, split: str) -> list[Scores]:
        member = setting.members[name] if name in group.members else None
        judge = setting.judges[name]
        return [judge.scores(params, split) for params in models(member)]

    return _scored(setting, group, scores_on)


def _ensemble(
    setting: Setting, group: Group, members: Sequence[Member]
) -> dict[str, Any]:
    stack = trees.stack([member.params for member in members])
    given = stack, jnp.asarray(owners_of(members))
    outputs = _outputs(members[0].problem.model)
    return _scored(
        setting,
        group,
        lambda name, split: [setting.judges[name].scores_of(outputs, given, split)],
    )


def _scored(
    setting: Setting, group: Group, scores_on: Callable[[str, str], list[Scores]]
) -> dict[str, Any]:
    """The record of a method from `(task, split) -> scores`."""

    def scores(split: str, names: Sequence[str]) -> dict[str, list[Scores]]:
        return {
            name: scores_on(name, split)
            for name in names
            if setting.judges[name].has(split)
        }

    return method_entry(
        scores("dev", group.members),
        scores("test", group.members),
        scores("test", group.unseen),
    )


@functools.lru_cache(maxsize=16)
def _outputs(model: Model) -> Callable[..., Any]:
    return functools.partial(label_ensemble, model)


def _experts(setting: Setting, members: Sequence[Member]) -> dict[str, Any]:
    found = {}
    for member in members:
        judge = setting.judges[member.name]
        found[member.name] = {
            split: judge.scores(member.params, split).mean if judge.has(split) else None
            for split in ("dev", "test")
        }
    return found


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


def _write(
    setting: Setting,
    fusion: Fusion,
    merged: Variant | None,
    results: dict[str, Any],
    folder: Path,
) -> None:
    """model/ of the RegMean merge, report.html; results.json last: all is there."""
    if merged is not None and setting.config.save_models:
        _save(setting, fusion, merged, results, folder / "model")
    write_report(results, None, folder / "report.html")
    atomic.write_json(folder / "results.json", results)


def _save(
    setting: Setting,
    fusion: Fusion,
    merged: Variant,
    results: dict[str, Any],
    folder: Path,
) -> None:
    first = fusion.members[0]
    params: Params = merged.encoder
    if merged.head is not None:
        params = {**merged.encoder, "head": merged.head}
    scores, counts = results["methods"][ANSWER], results["layers"][ANSWER]
    card = model_card(
        name=f"{ANSWER}-{results['target']}",
        method=ANSWER,
        base=Path(setting.config.encoder).name,
        sources=[
            {"name": m.name, "sha256": hf.hash_params(m.params)} for m in fusion.members
        ],
        coefficients=results["coefficients"],
        scores={f"{s} ({results['metric']})": scores[s] for s in ("dev", "test")},
        kind=first.problem.kind,
        sha256=hf.hash_params(params),
        notes=f"alpha {merged.chosen['alpha']:g}, chosen on dev; "
        + ", ".join(f"{count} tensors {how}" for how, count in counts.items())
        + ".",
    )
    hf.save(
        folder,
        params,
        setting.encoder.config,
        kind=None if merged.head is None else first.problem.kind,
        labels=() if merged.head is None else first.problem.task.labels,
        tokenizer_from=setting.encoder.path,
        card=card,
    )
