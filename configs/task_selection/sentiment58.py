"""Task selection on 58 binary sentiment tasks: all 3,306 ordered pairs.

Command: python launch/task_selection.py \
    --config=configs/task_selection/sentiment58.py:data=DIR --workdir=WORK
DIR: task folders of the names below (public sets that users bring themselves).
Options: data=DIR, rows=N (training rows of a source), test_rows=N (of a target),
max_length=N, epochs=N, keep=0.6, pairs=all|kept, few_shot=N, smoke.

Pugantsov and McCreadie 2023, arXiv:2302.05735, have 58 tasks, too; what they are is
not known. Here: reviews of products at three thresholds of their stars (11 domains x
t2, t4, t5), reviews of 13 + 3 domains, and sentences. Class 0 is negative (few stars),
class 1 positive. Time and results: docs/results.md.
"""

from fusion_jax.config import parse_options
from fusion_jax.systems.defaults import shrink
from fusion_jax.systems.selection_defaults import selection_config

THRESHOLDS = ("t2", "t4", "t5")
STARS = (
    "arsc_apparel",
    "arsc_automotive",
    "arsc_baby",
    "arsc_beauty",
    "arsc_camera_photo",
    "arsc_cell_phones_service",
    "arsc_computer_video_games",
    "arsc_gourmet_food",
    "arsc_grocery",
    "arsc_health_personal_care",
    "arsc_jewelry_watches",
)
"""Folders of three tasks each; labels low and high, 'task' says the threshold."""

REVIEWS = (
    "fdu_apparel",
    "fdu_baby",
    "fdu_books",
    "fdu_dvd",
    "fdu_electronics",
    "fdu_health_personal_care",
    "fdu_imdb",
    "fdu_kitchen_housewares",
    "fdu_mr",
    "fdu_music",
    "fdu_sports_outdoors",
    "fdu_toys_games",
    "fdu_video",
    "blitzer_books",
    "blitzer_dvd",
    "blitzer_kitchen",
    "imdb_cad_orig",
    "imdb_cad_revised",
)
SENTENCES = ("uci_amazon_cells", "uci_imdb", "uci_yelp", "sst2", "mr", "cr", "mpqa")

LABELS = ("negative", "positive")


def get_config(argument=None):
    """The config; `argument` is what follows the colon."""
    options = parse_options(
        argument,
        {
            "data": "",
            "rows": 256,
            "test_rows": 64,
            "max_length": 48,
            "epochs": 3,
            "keep": 0.6,
            "pairs": "all",
            "few_shot": 0,
            "smoke": False,
        },
    )
    config = selection_config()
    config.data.reader = "folders"
    config.data.path = options["data"]
    told = {
        f"{folder}_{threshold}": {
            "folder": folder,
            "where": {"task": threshold},
            "label_map": {"low": "negative", "high": "positive"},
            "labels": list(LABELS),
        }
        for folder in STARS
        for threshold in THRESHOLDS
    }
    config.data.tasks = told
    config.tasks = (*told, *REVIEWS, *SENTENCES)
    for name in ("rows", "max_length", "keep", "pairs", "few_shot"):
        config[name] = options[name]
    # A long run has company on its machine.
    config.clock = "cpu"
    config.max_dev_rows = 64
    config.max_test_rows = options["test_rows"]
    config.fit.epochs = options["epochs"]
    if options["smoke"]:
        config.tasks = ("arsc_baby_t2", "fdu_mr", "blitzer_books", "mpqa")
        shrink(config)
    return config
