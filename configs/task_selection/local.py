"""Task selection on task folders of your own, which have one set of labels.

Command: python launch/task_selection.py \
    --config=configs/task_selection/local.py:data=DIR --workdir=DIR
Options: data=DIR (holds the task folders), tasks=A+B (all folders by default),
measures=A+B (all by default), order=NAME, pairs=all|kept, keep=0.6, rows=N (training
rows of a source), few_shot=N, encoder=DIR, smoke.

To rank sources for one target without any training: fusion-jax select.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import shrink
from fusion_jax.systems.folders import selection_on_folders


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "tasks": (),
            "measures": (),
            "order": "",
            "pairs": "all",
            "keep": 0.6,
            "rows": 0,
            "few_shot": 0,
            "encoder": "",
            "max_length": 128,
            "smoke": False,
        },
    )
    config = selection_on_folders(options["data"])
    for name in ("tasks", "measures", "order", "pairs", "keep", "rows", "few_shot"):
        config[name] = options[name]
    config.max_length = options["max_length"]
    if options["encoder"]:
        config.encoder = options["encoder"]
    if options["smoke"]:
        shrink(config)
    return config
