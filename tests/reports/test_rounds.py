"""Reports of runs in rounds."""

import copy
import re

import pytest

from fusion_jax.reports.html import many_page, single_page
from fusion_jax.reports.methods import main_method, reference_method
from fusion_jax.reports.round_plots import Curve, by_round
from fusion_jax.reports.summary import headline
from fusion_jax.reports.tables import results_table, to_text
from fusion_jax.systems.cold_outcome import METHODS, many_results
from fusion_jax.systems.cold_scores import group_entry

SEEN, UNSEEN, TINY = ("a <i>", "b"), ("c",), ("b",)


def record(score):
    return {"dev": score, "test": score, "draws": [score - 0.1, score, score + 0.1]}


def entry(score, base=None, few=False):
    def part(names):
        plain = None if base is None else dict.fromkeys(names, record(base))
        return group_entry(dict.fromkeys(names, record(score)), plain, TINY)

    return {
        "dev": score,
        "test": score,
        "test_interval": [score - 0.1, score + 0.1],
        "seen": part(SEEN),
        "unseen": part(UNSEEN),
        "few_shot": part(UNSEEN) if few else None,
    }


def base(number, names, scores, rejected=()):
    return {
        "round": number,
        "base": f"{number}" * 64,
        "contributors": [*names, *(name for name, _ in rejected)],
        "accepted": list(names),
        "rejected": [{"contributor": n, "reasons": [why]} for n, why in rejected],
        "scores": scores,
        "memory": {},
        "seconds": {"fuse": 1.0},
    }


def scores(tuned, frozen, few):
    return {
        "finetuned": dict.fromkeys(("seen", "unseen"), tuned),
        "frozen": dict.fromkeys(("seen", "unseen"), frozen),
        "few_shot": few,
    }


@pytest.fixture
def run():
    methods = dict.fromkeys(METHODS)
    for name in METHODS:
        methods[name] = dict.fromkeys(
            ("dev", "test", "test_interval", "seen", "unseen", "few_shot")
        )
    methods["base"] = entry(0.5, few=True)
    methods["base_frozen"] = entry(0.3)
    methods["cold"] = entry(0.625, base=0.5, few=True)
    methods["cold_frozen"] = entry(0.4, base=0.3)
    methods["one_shot"] = entry(0.55, base=0.5, few=True)
    return {
        "schema_version": 1,
        "system": "cold_fusion",
        "target": "fold_0",
        "metric": "accuracy",
        "seed": 0,
        "methods": methods,
        "rounds": [
            base(0, (), scores(0.5, 0.3, 0.5)),
            base(1, ("a <i>",), scores(None, 0.35, None), [("b", "all <NaN>")]),
            base(2, ("a <i>", "b"), scores(0.625, 0.4, 0.625)),
        ],
        "tasks": {
            name: {
                "group": "seen" if name in SEEN else "unseen",
                "kind": "single_label",
                "labels": 2,
                "rows": {"train": 40},
                "rows_before_cut": 40,
                "tiny": name in TINY,
                "contributed": 2 - SEEN.index(name) if name in SEEN else 0,
            }
            for name in (*SEEN, *UNSEEN)
        },
        "coefficients": None,
        "experts": None,
        "seconds": {"contributors": 3.0},
    }


def test_the_run_is_about_cold_fusion_and_held_against_the_plain_base(run):
    assert main_method(run) == "cold" and reference_method(run) == "base"
    assert headline(run) == (
        "ColD Fusion scores 0.625 [0.525, 0.725] on test, 0.125 above the plain base."
    )
    text = to_text(results_table(run))
    assert "vs plain base" in text and "+0.125" in text


def test_the_page_has_curves_groups_rounds_and_tasks(run):
    page = single_page(run, None)
    for title in (
        "Scores by round",
        "Seen and unseen tasks",
        "Unseen tasks, few shots",
        "Rounds",
        "Task by task",
    ):
        assert f">{title}</h" in page
    # Every plot says its numbers; a base that was not evaluated is no point.
    assert "Fine-tuned, seen tasks: round 0 0.500, round 2 0.625" in page
    assert "Frozen, unseen tasks: round 0 0.300, round 1 0.350, round 2 0.400" in page
    assert "one-shot 0.550" in page
    # Names and reasons from outside are escaped.
    assert "a &lt;i&gt;" in page and "a <i>" not in page
    assert "all &lt;NaN&gt;" in page and "1 of 2" in page
    assert "Tiny sets: b." in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_gains_are_told_with_what_is_better_and_worst(run):
    page = single_page(run, None)
    section = page[page.index("Seen and unseen tasks") : page.index(">Rounds<")]
    assert "2 / 0" in section and "+0.125 a &lt;i&gt;" in section
    assert section.index("plain base") < section.index("ColD Fusion")


def test_a_task_by_task_row_is_of_its_own_group(run):
    page = single_page(run, None)
    section = page[page.index("Task by task") :]
    assert "seen, 2 labels, 40 rows, contributed 2x" in section
    assert "unseen, 2 labels, 40 rows" in section and "contributed 0x" not in section


def test_many_folds_have_means_of_groups(run):
    other = copy.deepcopy(run)
    other["target"] = "fold_1"
    other["methods"]["cold"] = entry(0.525, base=0.5, few=True)
    total = many_results([run, other], {})
    cell = total["groups"]["cold"]["seen"]
    assert cell["score"] == pytest.approx(0.575)
    assert cell["gain"] == pytest.approx(0.075)
    assert cell["spread"] == pytest.approx(0.1 / 2**0.5)
    assert total["groups"]["multitask"]["seen"]["runs"] == 0
    page = many_page(total)
    assert "0.575 ± 0.071" in page and page.count("Scores by round") == 0


def test_levels_that_lie_together_are_labelled_apart():
    drawn = by_round(
        [Curve("ColD", [(0, 0.5), (4, 0.52)])],
        {"plain": 0.5, "one-shot": 0.5001, "multi-task": 0.5002},
        4,
        "here",
    )
    places = [
        float(y)
        for y in re.findall(
            r"translate\([\d.]+ ([\d.]+)\)[^>]*>(?:ColD|plain|one|mul)", drawn
        )
    ] or [
        float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:ColD|plain|one|mul)', drawn)
    ]
    assert len(places) == 4
    assert min(abs(a - b) for a in places for b in places if a is not b) > 8


def test_a_run_without_rounds_has_none_of_it(results):
    page = single_page(results, None)
    assert "Scores by round" not in page and "Seen and unseen tasks" not in page
