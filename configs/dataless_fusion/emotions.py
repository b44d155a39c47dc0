"""Dataless fusion of emotion classifiers from five domains, in one label space.

Command: python launch/dataless_fusion.py \
    --config=configs/dataless_fusion/emotions.py:data=DIR --workdir=WORK
DIR: task folders goemotions, isear, tweeteval_emotion, friends_meld and
friends_emory_emotion whose rows have the field 'unified' (joy, sadness, anger, fear,
disgust, surprise, neutral); rows where it is empty are left out.
Options: data=DIR, head_init=same|different, merge=pairs+all+leave_one_out, shots=N,
seeds=N, smoke.

MELD and Emory are of one series and share utterances: where one is an owner, the other
is not quite unseen.

Every pair is tested in its two domains and in the three others; leave_one_out merges
four and is tested on the fifth. The paper's protocol with other data (Jin et al. 2023,
arXiv:2212.09849). Time and results: docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dataless_config, shrink

TASKS = (
    "goemotions",
    "isear",
    "tweeteval_emotion",
    "friends_meld",
    "friends_emory_emotion",
)
EMOTIONS = ["joy", "sadness", "anger", "fear", "disgust", "surprise", "neutral"]


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "head_init": "same",
            "merge": ("pairs", "all", "leave_one_out"),
            "shots": 1500,
            "seeds": 1,
            "smoke": False,
        },
    )
    config = dataless_config()
    config.data.reader = "folders"
    config.data.path = options["data"]
    unified = {
        "kind": "single_label",
        "label": "unified",
        "labels": EMOTIONS,
        "where": {"unified": EMOTIONS},
        "metrics": ["f1_macro"],
    }
    config.data.tasks = dict.fromkeys(TASKS, unified)
    config.tasks = TASKS
    config.head_init = options["head_init"]
    config.merge = options["merge"]
    config.shots = options["shots"]
    config.seeds = options["seeds"]
    config.max_dev_rows = 300
    config.max_test_rows = 300
    config.max_length = 48
    if options["smoke"]:
        config.tasks = TASKS[:2]
        config.merge = ("all",)
        shrink(config)
    return config
