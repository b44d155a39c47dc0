"""DFWE on generated dialogue tasks with MiniLM: the quickstart.

Command: python launch/dfwe.py --config=configs/dfwe/quickstart.py --workdir=DIR
Options: target=NAME, relatedness=0.7, smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dfwe_config


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument, {"target": "emotion", "relatedness": 0.7, "smoke": False}
    )
    config = dfwe_config()
    config.data.reader = "synthetic"
    config.data.relatedness = options["relatedness"]
    config.targets = (options["target"],)
    config.max_length = 64
    for stage in (config.source, config.target):
        stage.update({"epochs": 4, "batch_size": 16, "learning_rate": 1e-4})
    config.target.head_epochs = 4
    config.multitask.update({"epochs": 2, "learning_rate": 1e-4})
    if options["smoke"]:
        config.data.update({"train": 32, "dev": 16, "test": 16})
        config.sources = ("intent", "topic")
        config.search.budget = 24
        config.plane = 3
        for stage in (config.source, config.target, config.multitask):
            stage.epochs = 1
    return config
