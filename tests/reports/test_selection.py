"""The page of a task selection, from a record written by hand."""

import re

import numpy as np
import pytest

from fusion_jax.reports import selection, selection_plots
from fusion_jax.reports.selection_tables import measures_table, told
from fusion_jax.reports.tables import ABSENT

NAMES = ["a<b", "c", "d"]


def curve():
    return [
        {"keep": f, "survival": f, "regret": 1 - f, "pairs": f, "sources": 1.0}
        for f in (0.5, 1.0)
    ]


def order(rho, keep):
    point = {**curve()[0], "keep": keep}
    return {
        "spearman": {"mean": rho, "sd": 0.1, "min": None, "targets": {}},
        "against_reference": {"mean": 0.0, "se": None},
        "regret": {"1": 0.1, "3": 0.0},
        "ndcg": 0.9,
        "first": 0.7,
        "pruning": curve(),
        "without_loss": point if keep else None,
    }


def account(saved):
    return {"all": 100.0, "kept": 100 * (1 - saved), "saved": saved}


@pytest.fixture
def results():
    accounts = {"per_pair": account(0.4), "per_source": account(-0.01)}
    return {
        "system": "task_selection",
        "names": NAMES,
        "metric": "accuracy",
        "seed": 0,
        "order": "jensen_shannon",
        "keep": 0.5,
        "measures": {"jensen_shannon": order(0.5, 0.5), "random": order(0.01, None)},
        "distances": {"jensen_shannon": (1 - np.eye(3)).tolist()},
        "pairs": [
            {
                "source": s,
                "target": t,
                "kept": s < t,
                "ranks": {"jensen_shannon": 1},
                "zero_shot": 0.5 + 0.1 * (s < t),
                "few_shot": 0.8 if s < t else None,
            }
            for s in NAMES
            for t in NAMES
            if s != t
        ],
        "few_shot_direct": dict.fromkeys(NAMES, 0.7),
        "tasks": {
            n: {"rows": {"train": 9}, "dropped_shared_texts": 2, "own_score": None}
            for n in NAMES
        },
        "left_out": {"e": "one <class>"},
        "ledger": {
            "pair": "few-shot tuning",
            "estimated": [],
            "clock": "wall",
            "at_keep": accounts,
            "at_no_loss": {"jensen_shannon": {"keep": 0.5, **accounts}},
            "curve": [{"keep": f, **accounts} for f in (0.5, 1.0)],
        },
        "seconds": {"zero_shot": 3.0},
        "versions": {"fusion_jax": "0.1.0"},
        "config": {"keep": 0.5},
    }


def test_the_page_has_every_part_loads_nothing_and_escapes_names(results, tmp_path):
    text = selection.write_selection(results, tmp_path / "report.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Measures against measured transfer",
        "Pruning",
        "What is saved",
        "Tasks",
        "Few-shot",
        "Rows",
        "Left out",
        "Time by stage",
        "How it was run",
    ]
    assert "a<b" not in text and "a&lt;b" in text and "one &lt;class&gt;" in text
    assert not re.search(r'(src|href)="https?:', text)
    assert "40.0 %" in text and "\N{MINUS SIGN}1.0 %" in text
    assert len(re.findall("<figure", text)) == 6


def test_what_was_not_tried_is_left_out_of_the_page(results, tmp_path):
    results["measures"] = results["few_shot_direct"] = None
    results["left_out"] = {}
    results["ledger"]["curve"] = []
    for pair in results["pairs"]:
        pair["zero_shot"] = None
    text = selection.page(results)
    assert "<h2>Pruning</h2>" not in text and "<h2>Few-shot</h2>" not in text
    assert "is not known" in text and len(re.findall("<figure", text)) == 2


def test_the_table_puts_the_best_order_first_and_dashes_for_nothing(results):
    rows = measures_table(results).rows
    assert [row[0] for row in rows] == ["Jensen-Shannon", "random order"]
    assert rows[1][8:] == (ABSENT,) * 3
    assert "left out: e: one <class>" in told(results)


def test_no_correlation_stands_above_a_negative_one_and_none_last(results):
    results["measures"] = {
        "mmd": order(None, None),
        "kl": order(-0.2, None),
        "coral": order(0.0, None),
    }
    rows = measures_table(results).rows
    assert [row[0] for row in rows] == ["CORAL", "KL(source, target)", "MMD"]


def test_the_tree_joins_near_tasks_first():
    distances = np.array([[0, 9, 1, 9], [9, 0, 9, 2], [1, 9, 0, 9], [9, 2, 9, 0.0]])
    tree = selection_plots.tree_of(distances)
    assert tree[0, :2].tolist() == [0, 2] and tree[1, :2].tolist() == [1, 3]
    order = selection_plots.leaves_of(tree)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }
    # Estimates below zero, as MMD's, are drawn too.
    assert selection_plots.tree_of(distances - 1.5)[0, 2] == 0
