"""Dataless fusion on generated tasks: two owners of each, with other label shares.

Command: python launch/dataless_fusion.py \
    --config=configs/dataless_fusion/quickstart.py --workdir=DIR
Options: tasks=A+B, head_init=same|different, smoke.

Needs no data. Time: docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dataless_config, shrink


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {"tasks": ("emotion", "intent"), "head_init": "same", "smoke": False},
    )
    config = dataless_config()
    config.data.reader = "synthetic"
    config.data.update({"train": 400, "dev": 96, "test": 300})
    config.tasks = options["tasks"]
    config.head_init = options["head_init"]
    config.halves = {"rows": 200, "share": 0.8}
    config.multitask_groups = options["tasks"]
    config.max_length = 48
    if options["smoke"]:
        config.tasks = config.tasks[:1]
        shrink(config)
        config.halves.rows = 32
    return config
