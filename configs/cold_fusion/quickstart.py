"""ColD Fusion on generated tasks: six that contribute, two that are never seen.

Command: python launch/cold_fusion.py \
    --config=configs/cold_fusion/quickstart.py --workdir=DIR
Options: rounds=N, contributors=N, relatedness=0.7, smoke.

Needs no data.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.cold_defaults import cold_config
from fusion_jax.systems.defaults import shrink


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {"rounds": 4, "contributors": 3, "relatedness": 0.7, "smoke": False},
    )
    config = cold_config()
    config.data.reader = "synthetic"
    config.data.relatedness = options["relatedness"]
    config.data.update({"train": 200, "dev": 64, "test": 200})
    # Generated tasks are small by design, and none is left out for it.
    config.tiny_rows = 0
    config.folds, config.fold = 4, 0
    config.rounds = options["rounds"]
    config.contributors = options["contributors"]
    config.few_shot = 64
    config.finetune.epochs = 2
    config.multitask.epochs = 2
    config.max_length = 48
    if options["smoke"]:
        config.tasks = ("emotion", "intent", "topic", "urgency")
        shrink(config)
    return config
