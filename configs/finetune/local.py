"""Fine-tunes an encoder on a task folder of your own.

Command: python launch/finetune.py \
    --config=configs/finetune/local.py:data=DIR --workdir=DIR
Options: data=DIR (the task's folder), shots=N, encoder=DIR, max_length=N, seed=N,
smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import shrink
from fusion_jax.systems.folders import finetune_on_folder


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "shots": 0,
            "encoder": "",
            "max_length": 128,
            "seed": 0,
            "smoke": False,
        },
    )
    config = finetune_on_folder(options["data"])
    config.shots = options["shots"]
    config.max_length = options["max_length"]
    config.seed = options["seed"]
    if options["encoder"]:
        config.encoder = options["encoder"]
    if options["smoke"]:
        shrink(config)
    return config
