"""Fine-tunes MiniLM on one generated dialogue task.

Command: python launch/finetune.py --config=configs/finetune/quickstart.py --workdir=DIR
Options: target=NAME, relatedness=0.7, shots=N, smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import finetune_config


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
    config.fit.update({"epochs": 4, "learning_rate": 1e-4, "head_epochs": 4})
    if options["smoke"]:
        config.data.update({"train": 32, "dev": 16, "test": 16})
        config.fit.update({"epochs": 1, "head_epochs": 0})
    return config
