"""Averages over groups of tasks, held against numbers that others have published."""

import numpy as np
import pytest

from fusion_jax.systems.cold_scores import group_entry

# Don-Yehiya et al. 2023, arXiv:2212.01378, Table 1: accuracy after fine-tuning the
# plain base, multi-task training, ColD Fusion.
TABLE = """
cola 83.43 82.42 82.74, mrpc 87.45 86.96 89.26, qqp 90.72 90.89 91.22,
boolq 77.14 80.27 81.39, cb 64.29 82.86 85.00, copa 47.00 60.00 64.40,
multirc 60.56 62.34 63.01, wic 65.71 68.06 68.12, wsc 63.46 63.27 62.31,
ag_news 89.85 89.55 89.58, isear 72.78 71.94 72.40, yahoo_answers 72.49 71.71 72.69,
dbpedia 77.49 77.69 78.15, 20_newsgroup 85.31 85.25 85.97, trec_fine 87.08 88.28 91.04,
trec_coarse 97.32 97.40 97.20, poem_sentiment 83.85 88.27 86.54, imdb 93.86 93.82 94.01,
rotten_tomatoes 88.03 90.73 91.48, sst_5bins 56.24 57.56 59.52, sst2 93.85 94.27 95.16,
amazon_reviews_multi 66.51 66.22 66.65, financial_phrasebank 85.40 85.26 86.72,
emoji 46.35 46.02 46.35, emotion 81.52 81.25 82.76, hate 53.76 53.70 53.95,
irony 71.05 74.54 76.25, offensive 84.58 85.16 85.79, sentiment 70.94 70.47 70.72,
mnli 87.11 87.26 87.14, qnli 92.42 92.39 92.66, rte 70.11 82.17 84.48,
wnli 55.21 51.55 54.93, esnli 91.00 91.27 91.31, anli 51.51 51.48 52.00
"""
TINY = ("cb", "copa", "rte")


def record(score, draws=None):
    draws = np.full(1000, score) if draws is None else draws
    return {"dev": score, "test": score, "draws": list(draws)}


@pytest.fixture(scope="module")
def published():
    rows = [row.split() for row in TABLE.replace("\n", " ").split(",")]
    columns = zip(*(map(float, row[1:]) for row in rows), strict=True)
    names = ("base", "multitask", "cold")
    return {
        name: {row[0]: record(x) for row, x in zip(rows, column, strict=True)}
        for name, column in zip(names, columns, strict=True)
    }


def test_means_of_the_published_table(published):
    means = {
        name: group_entry(records, None, TINY)["score"]
        for name, records in published.items()
    }
    assert means["base"] == pytest.approx(75.58, abs=5e-3)
    assert means["multitask"] == pytest.approx(77.21, abs=5e-3)
    assert means["cold"] == pytest.approx(78.08, abs=5e-3)


def test_gains_of_the_published_table(published):
    gain = group_entry(published["cold"], published["base"], TINY)["gain"]
    assert gain["mean"] == pytest.approx(2.50, abs=5e-3)
    assert (gain["better"], gain["worse"], gain["equal"]) == (27, 7, 1)
    assert gain["worst"] == ["wsc", pytest.approx(-1.15)]
    assert gain["best"] == ["cb", pytest.approx(20.71)]
    # Three tiny sets make most of it.
    assert gain["without_tiny"] == pytest.approx(1.10, abs=5e-3)
    assert gain["median"] == pytest.approx(0.66, abs=5e-3)
    low, high = gain["interval_tasks"]
    assert 0 < low < 2.50 < high


def test_the_interval_of_a_gain_is_paired():
    """Two bases that err on the same items differ by nothing, however few items."""
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.1, 1000)
    records = {"a": record(0.6, 0.6 + noise), "b": record(0.5, 0.5 + noise)}
    plain = {"a": record(0.5, 0.5 + noise), "b": record(0.5, 0.5 + noise)}
    entry = group_entry(records, plain, ())
    assert entry["gain"]["interval"] == pytest.approx([0.05, 0.05])
    expected = 0.55 + np.quantile(noise, [0.025, 0.975])
    assert entry["interval"] == pytest.approx(list(expected))
    assert entry["gain"]["interval_tasks"] is None  # of two tasks


def test_a_group_without_large_sets_has_no_second_average():
    entry = group_entry({"cb": record(0.5)}, {"cb": record(0.4)}, TINY)
    assert entry["without_tiny"] is None and entry["gain"]["without_tiny"] is None
    assert group_entry({}, None, ()) is None
