"""DFWE on generated dialogue tasks with MiniLM: the quickstart.

Command: python launch/dfwe.py --config=configs/dfwe/quickstart.py --workdir=DIR
Options: target=NAME, relatedness=0.7, smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dfwe_config, shrink


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument, {"target": "emotion", "relatedness": 0.7, "smoke": False}
    )
    config = dfwe_config()
    config.data.reader = "synthetic"
    config.data.relatedness = options["relatedness"]
    config.targets = (options["target"],)
    # Smaller splits and shorter training than the default, for two CPU cores.
    config.data.update({"train": 128, "dev": 96, "test": 300})
    config.source.epochs = 3
    config.target.update({"epochs": 4, "head_epochs": 2})
    config.multitask.epochs = 1
    config.max_length = 48
    config.search.budget = 48
    config.plane = 7
    if options["smoke"]:
        config.sources = ("intent", "topic")
        shrink(config)
    return config
