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
    # Five minutes on two CPU cores: smaller splits and fewer pictures than the default.
    config.data.update({"train": 160, "dev": 96, "test": 300})
    config.max_length = 64
    config.search.budget = 64
    config.plane = 7
    if options["smoke"]:
        config.sources = ("intent", "topic")
        shrink(config)
    return config
