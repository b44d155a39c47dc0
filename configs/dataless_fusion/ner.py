"""Dataless fusion of taggers from several domains: persons, places, organisations.

Command: python launch/dataless_fusion.py \
    --config=configs/dataless_fusion/ner.py:data=DIR --workdir=WORK
DIR: task folders ner_ai, ner_literature, ner_music, ner_wnut17 and ner_mit_movies.
Their own types are mapped to PER, LOC and ORG in BIO form, everything else to O.
Options: data=DIR, head_init=same|different, merge=pairs+all+leave_one_out, shots=N,
seeds=N, smoke.

The owners are AI, literature, music and tweets (WNUT-17); queries about films know
persons alone and are tested as an unseen domain. The score is the micro-F1 of spans.
Protocol: Jin et al. 2023, arXiv:2212.09849. Time and results: docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import dataless_config, shrink

TASKS = ("ner_ai", "ner_literature", "ner_music", "ner_wnut17")
UNSEEN = ("ner_mit_movies",)
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
# Types of a domain that have a place in the shared space.
SHARED = {
    "PER": ("person", "researcher", "writer", "musicalartist", "Actor", "Director"),
    "LOC": ("location", "country"),
    "ORG": ("organisation", "university", "band", "corporation", "group"),
}
OTHERS = {
    "ner_ai": (
        *("algorithm", "conference", "field", "metrics", "misc", "product"),
        *("programlang", "task"),
    ),
    "ner_literature": (
        *("award", "book", "event", "literarygenre", "magazine", "misc", "poem"),
    ),
    "ner_music": (
        *("album", "award", "event", "misc", "musicalinstrument", "musicgenre"),
        "song",
    ),
    "ner_wnut17": ("creative-work", "product"),
    "ner_mit_movies": (
        *("Award", "Character_Name", "Genre", "Opinion", "Origin", "Plot", "Quote"),
        *("Relationship", "Soundtrack", "Year"),
    ),
}


def tag_map(task):
    """Raw tag -> tag of the shared space."""
    mapped = {
        f"{begin}-{kind}": f"{begin}-{shared}"
        for shared, kinds in SHARED.items()
        for kind in kinds
        for begin in "BI"
    }
    return mapped | {f"{b}-{kind}": "O" for kind in OTHERS[task] for b in "BI"}


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
    config.data.tasks = {
        task: {"kind": "token", "labels": TAGS, "label_map": tag_map(task)}
        for task in (*TASKS, *UNSEEN)
    }
    config.tasks = TASKS
    config.out_of_domain = UNSEEN
    config.head_init = options["head_init"]
    config.merge = options["merge"]
    config.shots = options["shots"]
    config.seeds = options["seeds"]
    config.max_dev_rows = 300
    config.max_test_rows = 500
    config.max_length = 96
    # Three of the domains have 100 sentences.
    config.fit.update({"epochs": 12, "batch_size": 8})
    config.multitask.update({"epochs": 6, "batch_size": 8})
    # Exact expectations over the tags of every token would cost a pass for each.
    config.statistics.estimator = "empirical"
    if options["smoke"]:
        config.tasks = TASKS[:2]
        config.merge = ("all",)
        shrink(config)
    return config
