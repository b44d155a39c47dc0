"""Dataless fusion of different tasks, two at a time: everyone keeps the own head.

Command: python launch/dataless_fusion.py \
    --config=configs/dataless_fusion/pairs.py:data=DIR --workdir=WORK
DIR: task folders sst2, mrpc, rte, snli_cad_orig and subj.
Options: data=DIR, shots=N, seeds=N, smoke.

GLUE-like: the encoder is merged, and each task is tested with its head on the merged
encoder. Protocol: Jin et al. 2023, arXiv:2212.09849. Time and results: docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dataless_config, shrink

TASKS = ("sst2", "mrpc", "rte", "snli_cad_orig", "subj")


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument, {"data": "", "shots": 1500, "seeds": 1, "smoke": False}
    )
    config = dataless_config()
    config.data.reader = "folders"
    config.data.path = options["data"]
    config.data.tasks = {
        task: {"kind": "single_label", "metrics": ["accuracy"]} for task in TASKS
    }
    config.tasks = TASKS
    config.labels = "private"
    config.head_init = "different"
    config.merge = ("pairs", "all")
    config.shots = options["shots"]
    config.seeds = options["seeds"]
    config.max_dev_rows = 300
    config.max_test_rows = 1000
    config.max_length = 96
    if options["smoke"]:
        config.tasks = TASKS[:2]
        config.merge = ("all",)
        shrink(config)
    return config
