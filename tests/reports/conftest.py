"""Hand-written results of a run, as results.json holds them."""

import copy

import pytest

RESULTS = {
    "schema_version": 1,
    "system": "dfwe",
    "target": "emotion",
    "metric": ["f1_micro", "f1_weighted"],
    "seed": 3,
    "methods": {
        "mean_expert": {"dev": 0.6, "test": 0.578, "test_interval": None},
        "uniform_soup": {"dev": 0.61, "test": 0.5, "test_interval": [0.46, 0.54]},
        "dfwe": {"dev": 0.64, "test": 0.612, "test_interval": [0.57, 0.65]},
        "logit_ensemble": {"dev": 0.66, "test": 0.63, "test_interval": [0.59, 0.67]},
        "best_expert": {"dev": 0.62, "test": 0.62, "test_interval": [0.58, 0.66]},
        "multitask_finetune": {"dev": None, "test": None, "test_interval": None},
    },
    "coefficients": {"direct": 0.5, "intent": 0.7, "topic <b>": -0.2},
    "experts": {
        "direct": {"dev": 0.59, "test": 0.57},
        "intent": {"dev": 0.62, "test": 0.62},
        "topic <b>": {"dev": 0.58, "test": None},
    },
    "candidates": 4,
    "seconds": {"train": 75.0, "search": 20.0, "never": None},
    "versions": {"fusion_jax": "0.1.0", "jax": "0.10.2"},
    "config": {"search": {"objective": "metric", "budget": 4}, "sources": ["intent"]},
}

HISTORY = {
    "evaluations": [
        {
            "generation": -1,
            "index": 0,
            "coefficients": [1, 0, 0],
            "fitness": -0.6,
            "origin": "warm",
        },
        {
            "generation": 0,
            "index": 1,
            "coefficients": [0.5, 0.5, 0],
            "fitness": float("inf"),
            "origin": "search",
        },
        {
            "generation": 0,
            "index": 2,
            "coefficients": [0.5, 0.4, 0.1],
            "fitness": None,
            "origin": "search",
        },
        {
            "generation": 0,
            "index": 3,
            "coefficients": [0.5, 0.7, -0.2],
            "fitness": -0.64,
            "origin": "search",
        },
    ],
    "means": [[1 / 3, 1 / 3, 1 / 3], [0.5, 0.6, -0.1]],
    "plane": {
        "experts": [0, 1, 2],
        "points": [[u / 4, v / 4] for u in range(5) for v in range(5 - u)],
        "loss": [
            1 + (u - 1) ** 2 + (v - 2) ** 2 for u in range(5) for v in range(5 - u)
        ],
        "walk": [[1 / 3, 1 / 3], [0.6, -0.1]],
    },
}


@pytest.fixture
def results():
    """Results of one run, free to change."""
    return copy.deepcopy(RESULTS)


@pytest.fixture
def history():
    """History of one run, free to change."""
    return copy.deepcopy(HISTORY)
