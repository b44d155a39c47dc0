"""Task selection on generated tasks: one question in six domains, all 30 pairs.

Command: python launch/task_selection.py \
    --config=configs/task_selection/quickstart.py --workdir=DIR
Options: asks=stance (of `data.synthetic.LABELS`), domains=N, keep=0.6, few_shot=N,
smoke.

Needs no data; two minutes of processor time.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import shrink
from fusion_jax.systems.selection_defaults import selection_config


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {"asks": "stance", "domains": 6, "keep": 0.6, "few_shot": 0, "smoke": False},
    )
    config = selection_config()
    config.data.update(
        {
            "asks": options["asks"],
            "count": options["domains"],
            "train": 128,
            "dev": 32,
            "test": 96,
        }
    )
    config.keep = options["keep"]
    config.few_shot = options["few_shot"]
    config.fit.epochs = 2
    config.texts = 64
    config.max_length = 32
    if options["smoke"]:
        config.data.count = 3
        shrink(config)
    return config
