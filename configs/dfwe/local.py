"""DFWE on task folders of your own.

Command: python launch/dfwe.py \
    --config=configs/dfwe/local.py:data=DIR,target=NAME,sources=A+B+C --workdir=DIR
Options: data=DIR (holds the task folders), target=NAME or A+B, sources=A+B (all other
folders by default; auto:3 = the three whose texts are nearest), shots=N,
source_shots=N, encoder=DIR, experts=DIR+DIR (skips training), smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import shrink
from fusion_jax.systems.folders import dfwe_on_folders


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "target": (),
            "sources": (),
            "shots": 0,
            "source_shots": 0,
            "encoder": "",
            "experts": (),
            "max_length": 128,
            "smoke": False,
        },
    )
    config = dfwe_on_folders(options["data"])
    config.targets = options["target"]
    config.sources = options["sources"]
    config.experts = options["experts"]
    config.shots = options["shots"]
    config.source_shots = options["source_shots"]
    config.max_length = options["max_length"]
    if options["encoder"]:
        config.encoder = options["encoder"]
    if options["smoke"]:
        shrink(config)
    return config
