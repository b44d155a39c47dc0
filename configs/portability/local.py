"""The portability study on models and task folders of your own.

Command: python launch/portability.py \
    --config=configs/portability/local.py:data=DIR,hosts=a=DIR+b=DIR --workdir=DIR
Options: data=DIR (holds the task folders), hosts=NAME=DIR+NAME=DIR, tasks=A+B (all
folders by default), pairs=a:b+b:a, combinations=A:B+A:A (origin:receiver; all by
default), techniques=lora+adapter, inits=ported+scratch, head=ported|fresh, shots=N,
seeds=N, modules=TECHNIQUE:HOST:TASK:SEED=DIR (skips their training), smoke.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.folders import portability_on_folders, take_names
from fusion_jax.systems.portability_defaults import INITS, shrink_study


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "hosts": (),
            "tasks": (),
            "pairs": (),
            "combinations": (),
            "techniques": (),
            "inits": INITS[:4],
            "head": "ported",
            "shots": 0,
            "seeds": 1,
            "modules": (),
            "max_length": 128,
            "smoke": False,
        },
    )
    config = portability_on_folders(options["data"])
    take_names(config, options["hosts"], options["techniques"])
    for name in ("tasks", "pairs", "combinations", "inits", "head", "shots", "seeds"):
        config[name] = options[name]
    config.modules = options["modules"]
    config.max_length = options["max_length"]
    if options["smoke"]:
        shrink_study(config)
    return config
