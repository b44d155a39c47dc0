"""DFWE on the seven FETA-Friends tasks, few-shot, each target with the six others.

Command: python launch/dfwe.py --config=configs/dfwe/friends.py:data=DIR --workdir=WORK
DIR: what scripts/prepare_feta_friends.py wrote, or unsplit task folders friends_*
beside feta_friends_splits.json.
Options: data=DIR, target=A+B (default all seven), full (all scenes instead of a tenth),
max_test_rows=N (0 = all), max_length=N, smoke.

Rules of the challenge: few-shot train and dev of this data alone, sources included;
test scenes are seen once, at the end. Time and results: docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dfwe_config, shrink

TASKS = (
    "friends_emory_emotion",
    "friends_meld",
    "friends_reading",
    "friends_charid",
    "friends_qa",
    "friends_personality",
    "friends_relation",
)


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "target": (),
            "full": False,
            "max_test_rows": 0,
            "max_length": 128,
            "smoke": False,
        },
    )
    config = dfwe_config()
    config.data.reader = "feta_friends"
    config.data.path = options["data"]
    config.data.few_shot = not options["full"]
    config.targets = options["target"] or TASKS
    config.sources = TASKS
    config.max_length = options["max_length"]
    # A question's context is a scene.
    config.task_lengths = (("friends_qa", max(192, options["max_length"])),)
    config.max_test_rows = options["max_test_rows"]
    if options["smoke"]:
        config.task_lengths = ()
        config.targets = config.targets[:1]
        config.sources = TASKS[1:3]
        shrink(config)
    return config
