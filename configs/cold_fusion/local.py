"""ColD Fusion on task folders of your own.

Command: python launch/cold_fusion.py \
    --config=configs/cold_fusion/local.py:data=DIR,tasks=A+B+C --workdir=DIR
Options: data=DIR (holds the task folders), tasks=A+B (all folders by default),
rounds=N, contributors=N, folds=N (0: every task contributes), fold=N (-1: all),
shots=N, encoder=DIR, repository=URL (WORKDIR/repository by default), smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import shrink
from fusion_jax.systems.folders import cold_on_folders


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "tasks": (),
            "rounds": 10,
            "contributors": 8,
            "folds": 0,
            "fold": -1,
            "shots": 0,
            "encoder": "",
            "repository": "",
            "max_length": 128,
            "smoke": False,
        },
    )
    config = cold_on_folders(options["data"])
    for name in ("tasks", "rounds", "contributors", "folds", "fold", "shots"):
        config[name] = options[name]
    config.repository = options["repository"]
    config.max_length = options["max_length"]
    if options["encoder"]:
        config.encoder = options["encoder"]
    if options["smoke"]:
        shrink(config)
    return config
