"""Dataless fusion on task folders of your own.

Command: python launch/dataless_fusion.py \
    --config=configs/dataless_fusion/local.py:data=DIR,tasks=A+B+C --workdir=DIR
Options: data=DIR (holds the task folders), tasks=A+B (all folders by default),
out_of_domain=C+D (tested, never trained on), labels=shared|private, merge=pairs+all,
shots=N, encoder=DIR, experts=DIR+DIR (one model a task; skips training), smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import shrink
from fusion_jax.systems.folders import dataless_on_folders


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "tasks": (),
            "out_of_domain": (),
            "labels": "shared",
            "merge": ("all",),
            "shots": 0,
            "encoder": "",
            "experts": (),
            "max_length": 128,
            "smoke": False,
        },
    )
    config = dataless_on_folders(options["data"])
    for name in ("tasks", "out_of_domain", "labels", "merge", "shots", "experts"):
        config[name] = options[name]
    config.max_length = options["max_length"]
    if options["encoder"]:
        config.encoder = options["encoder"]
    if options["smoke"]:
        shrink(config)
    return config
