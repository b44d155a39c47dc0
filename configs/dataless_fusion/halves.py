"""Dataless fusion of two owners of one task, each with other shares of its labels.

Command: python launch/dataless_fusion.py \
    --config=configs/dataless_fusion/halves.py:data=DIR --workdir=WORK
DIR: task folders sst2, mrpc, rte, trec, subj and snli_cad_orig.
Options: data=DIR, head_init=same|different, share=0.8, seeds=N, smoke.

Of the 800 rows of an owner, 80 % are of its own classes. Heads are merged too.
Protocol: Jin et al. 2023, arXiv:2212.09849 (1000 rows there). Time and results:
docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dataless_config, shrink

TASKS = ("sst2", "mrpc", "rte", "trec", "subj", "snli_cad_orig")


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {"data": "", "head_init": "same", "share": 0.8, "seeds": 1, "smoke": False},
    )
    config = dataless_config()
    config.data.reader = "folders"
    config.data.path = options["data"]
    config.data.tasks = {
        task: {"kind": "single_label", "metrics": ["accuracy"]} for task in TASKS
    }
    config.tasks = TASKS
    config.head_init = options["head_init"]
    config.halves = {"rows": 800, "share": options["share"]}
    config.seeds = options["seeds"]
    config.multitask_groups = TASKS
    config.max_dev_rows = 300
    config.max_test_rows = 1000
    config.max_length = 96
    if options["smoke"]:
        config.tasks = TASKS[:1]
        shrink(config)
        config.halves.rows = 32
    return config
