"""The portability study's options, which config files change field by field."""

from typing import Any

from ml_collections import ConfigDict

from fusion_jax.systems.defaults import MULTITASK, fit_config

INITS = ("ported", "scratch", "gaussian", "permuted", "gaussian_module")
HEADS = ("ported", "fresh")
WIDTHS = ("correlation", "ridge", "subspace")

TECHNIQUES: dict[str, dict[str, Any]] = {
    "adapter": {
        "peft": {"kind": "adapter", "place": "houlsby", "reduction_factor": 16},
        "learning_rate": 2e-3,
    },
    "prefix": {"peft": {"kind": "prefix", "length": 20}, "learning_rate": 3e-2},
    "compacter": {"peft": {"kind": "compacter"}, "learning_rate": 5e-3},
    "lora": {"peft": {"kind": "lora", "rank": 8, "alpha": 16}, "learning_rate": 5e-3},
}
"""The four techniques of the paper; its hyperparameters are not known."""


def portability_config() -> ConfigDict:
    """The portability study's options.

    hosts: name -> Hugging Face directory, 'package:NAME/DIR' or hub id.
    made: name -> base (of `hosts`), layers (numbers of those it keeps; empty = all) and
      tasks (of `data`, none of the study's) that it is trained on further, together;
      empty = none. They are left in WORKDIR/hosts as model directories. make:
      `FitConfig` of that training, make_shots: rows of each task, 0 = all.
    pairs: 'ORIGIN:RECEIVER' of hosts; empty = all of different hosts.
    data: reader of `systems.tasks.READERS` and its options. tasks: names, of one label
      space; empty = all. combinations: 'ORIGIN:RECEIVER' of tasks; empty = all, the
      same data for both among them.
    techniques: name -> peft (fields of `PeftConfig`) and learning_rate.
    inits: of `INITS`: 'ported' and its controls. 'scratch' is the technique's own
      init; 'gaussian' has the mean and deviation of each ported tensor, 'permuted' its
      entries in another order, 'gaussian_module' those of the whole module.
    head: 'ported' (the origin's head goes along with every init, so that controls
      differ in the module alone and scratch at 0 steps is the bare host under the
      origin's head) or 'fresh' (every init begins with one drawn head).
    steps: of training on the receiver's data after which is scored; 0 = zero-shot.
    seeds, seed: of modules, heads, controls and orders, seed .. seed + seeds - 1; rows
      are drawn once, with `seed`, so that all runs are tested on the same.
    port: method ('auto': copy, or `depth` where only the number of layers differs, or
      `width`), depth ('skip', 'average'), width (of `WIDTHS`), magnitude (of DoRA),
      tokens (shared tokens that hidden states are measured on), options (of the
      method).
    modules: 'TECHNIQUE:HOST:TASK:SEED=DIR' of modules that exist; those are not
      trained. strict_host: a module of another host than its own is an error.
    shots: training rows of origins, 0 = all; receiver_shots: of receivers.
    max_dev_rows, max_test_rows: likewise. max_length, tokens_per_batch, dtype: as in
      DFWE.
    fit: `FitConfig` of origins; the epoch that is best on dev is taken. receive: of
      receivers; its schedule is constant and its epochs count nothing. Both take the
      technique's learning rate.
    together: modules trained in one program; 0 = by the device.
    """
    config = ConfigDict()
    config.system = "portability"
    config.hosts = ConfigDict()
    config.made = ConfigDict()
    config.make = fit_config(**MULTITASK)
    config.make_shots = 0
    config.pairs = ()
    config.data = ConfigDict({"reader": "synthetic", "path": ""})
    config.tasks = ()
    config.combinations = ()
    config.techniques = ConfigDict(TECHNIQUES, convert_dict=True)
    config.inits = INITS[:4]
    config.head = "ported"
    config.steps = (0, 50, 100)
    config.seeds = 1
    config.seed = 0
    config.port = ConfigDict(
        {
            "method": "auto",
            "depth": "skip",
            "width": "correlation",
            "magnitude": "relative",
            "tokens": 2048,
            "options": {},
        },
        convert_dict=True,
    )
    config.modules = ()
    config.strict_host = False
    config.shots = 0
    config.receiver_shots = 0
    config.max_dev_rows = 0
    config.max_test_rows = 0
    config.max_length = 128
    config.tokens_per_batch = 2048
    config.dtype = "float32"
    config.fit = fit_config(epochs=5, learning_rate=1e-3, frozen=())
    config.receive = fit_config(
        epochs=1,
        learning_rate=1e-3,
        schedule="constant",
        warmup_fraction=0.0,
        frozen=(),
    )
    config.together = 0
    config.lock()
    # Names of one's own: hosts, techniques and what readers and methods take.
    free: tuple[Any, ...] = (
        config.hosts,
        config.made,
        config.data,
        config.techniques,
        config.port.options,
    )
    for one in free:
        one.unlock()
    return config


def shrink_study(config: Any) -> None:
    """Cuts a study down to a run that shows that everything works, and no more."""
    config.shots, config.receiver_shots = 32, 16
    config.max_dev_rows, config.max_test_rows = 16, 32
    config.max_length = 32
    config.steps = (0, 2)
    config.seeds = 1
    config.port.tokens = 64
    config.fit.epochs = 1
    config.make.epochs = 1
    config.make_shots = 16
