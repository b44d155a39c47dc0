"""Fine-tunes MiniLM on one generated dialogue task.

Command: python launch/finetune.py --config=configs/finetune/quickstart.py --workdir=DIR
Options: target=NAME, relatedness=0.7, shots=N, smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import finetune_config, shrink


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "target": "emotion",
            "relatedness": 0.7,
            "shots": 0,
            "smoke": False,
        },
    )
    config = finetune_config()
    config.data.reader = "synthetic"
    config.data.relatedness = options["relatedness"]
    config.target = options["target"]
    config.shots = options["shots"]
    config.max_length = 64
    if options["smoke"]:
        shrink(config)
    return config
