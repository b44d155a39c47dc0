"""ColD Fusion on 24 classification tasks: the paper's protocol, scaled down.

Command: python launch/cold_fusion.py \
    --config=configs/cold_fusion/many_tasks.py:data=DIR --workdir=WORK
DIR: task folders of the names below (public sets that users bring themselves).
Options: data=DIR, rounds=N, contributors=N, folds=N, fold=N (-1: all), shots=N,
max_test_rows=N, epochs=N (of contributors), seeds=N, smoke.

Don-Yehiya et al. 2023, arXiv:2212.01378, sample 8 of 35 sets for 30 rounds; a third of
the sets is unseen in their side experiment, as it is here. Of SST-2, SST-5 and Rotten
Tomatoes, whose rows are one pool, only SST-2 is here: what moves between them is no
transfer. Sets without public test labels (CB, RTE) are tested on their dev rows. Time
and results: docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.cold_defaults import cold_config
from fusion_jax.systems.defaults import shrink

TASKS = (
    # topic, question, intent
    "ag_news",
    "trec",
    "banking77",
    "clinc150",
    "snips",
    # emotion, sentiment, subjectivity
    "isear",
    "airline",
    "cr",
    "mpqa",
    "subj",
    "sst2",
    "imdb_cad_orig",
    "fdu_kitchen_housewares",
    "absa_restaurants",
    # tweets
    "tweeteval_emotion",
    "tweeteval_hate",
    "tweeteval_irony",
    "tweeteval_offensive",
    "tweeteval_sentiment",
    "tweeteval_stance_abortion",
    # pairs: entailment, paraphrase
    "cb",
    "mrpc",
    "rte",
    "snli_cad_orig",
)


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "rounds": 6,
            "contributors": 8,
            "folds": 3,
            "fold": 0,
            "shots": 500,
            "max_test_rows": 300,
            "epochs": 2,
            "seeds": 1,
            "smoke": False,
        },
    )
    config = cold_config()
    config.data.reader = "folders"
    config.data.path = options["data"]
    # Plain accuracy everywhere, as in the paper.
    config.data.tasks = {name: {"metrics": ["accuracy"]} for name in TASKS}
    config.tasks = TASKS
    for name in ("rounds", "contributors", "folds", "fold", "shots", "seeds"):
        config[name] = options[name]
    config.max_test_rows = options["max_test_rows"]
    config.max_dev_rows = 100
    config.fit.epochs = options["epochs"]
    config.max_length = 48
    if options["smoke"]:
        config.tasks = ("trec", "snips", "sst2", "cb")
        config.folds = 2
        shrink(config)
    return config
