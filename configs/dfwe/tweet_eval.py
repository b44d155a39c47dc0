"""DFWE on TweetEval from the Hugging Face hub: few shots of one task, six sources.

Command: python launch/dfwe.py --config=configs/dfwe/tweet_eval.py --workdir=DIR
Options: target=NAME, shots=N, source_shots=N, data=ID or folder of save_to_disk copies,
smoke.
Needs the network once, for the data; it was not run against the hub.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dfwe_config, shrink

SUBSETS = ("emotion", "hate", "irony", "offensive", "sentiment", "stance_climate")


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "target": "irony",
            "shots": 256,
            "source_shots": 1000,
            "data": "cardiffnlp/tweet_eval",
            "smoke": False,
        },
    )
    config = dfwe_config()
    config.data.reader = "datasets"
    config.data.path = options["data"]
    config.targets = (options["target"],)
    config.sources = tuple(dict.fromkeys((*SUBSETS, options["target"])))
    config.shots = options["shots"]
    config.source_shots = options["source_shots"]
    config.max_length = 64
    config.max_test_rows = 1000
    if options["smoke"]:
        shrink(config)
    return config
