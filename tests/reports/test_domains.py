"""Reports of runs that test in unseen domains."""

import copy

import pytest

from fusion_jax.reports.html import many_page, single_page
from fusion_jax.reports.methods import main_method, reference_method
from fusion_jax.reports.summary import headline
from fusion_jax.reports.tables import ABSENT, results_table, to_text
from fusion_jax.systems.dataless_outcome import many_results, not_run


def entry(inside, outside):
    def domain(score, tasks):
        return {"score": score, "interval": [score - 0.1, score + 0.1], "tasks": tasks}

    return {
        "dev": inside,
        "test": inside,
        "test_interval": [inside - 0.1, inside + 0.1],
        "in_domain": domain(inside, {"a": inside, "b": inside}),
        "out_of_domain": domain(outside, {"c <i>": outside}),
    }


@pytest.fixture
def run():
    return {
        "schema_version": 1,
        "system": "dataless_fusion",
        "target": "a+b",
        "metric": "f1_macro",
        "seed": 0,
        "methods": {
            "individual": entry(0.52, 0.21),
            "average": entry(0.41, 0.23),
            "regmean": entry(0.55, 0.22),
            "fisher": not_run(),
        },
        "chosen": {
            "regmean": {
                "options": {"alpha": 0.9},
                "tried": [{"alpha": 0.1, "dev": 0.4}, {"alpha": 0.9, "dev": 0.55}],
            },
            "average": {"options": {}, "tried": [{"dev": 0.41}]},
        },
        "coefficients": {"a": 0.5, "b": 0.5},
        "experts": {"a": {"dev": 0.5, "test": 0.5}, "b": {"dev": 0.5, "test": 0.5}},
        "seconds": {"regmean": 3.0},
    }


def test_the_run_is_about_regmean_and_held_against_the_average(run):
    assert main_method(run) == "regmean"
    assert reference_method(run) == "average"
    assert headline(run) == (
        "RegMean scores 0.550 [0.450, 0.650] on test, 0.140 above the average."
    )
    text = to_text(results_table(run))
    assert "vs average" in text and "+0.140" in text
    assert f"{ABSENT} not run" in text


def test_unseen_domains_and_choices_have_sections(run):
    page = single_page(run, None)
    section = page[page.index("Unseen domains") :]
    # By score; names from outside are escaped.
    assert section.index("average") < section.index("RegMean")
    assert "c &lt;i&gt;" in page and "c <i>" not in page
    assert "alpha 0.1: 0.400; alpha 0.9: 0.550" in page
    chosen = page[page.index("Chosen on dev") : page.index("Time by stage")]
    assert "average" not in chosen  # nothing was there to choose


def test_many_groups_are_ranked_in_both_kinds_of_domain(run):
    other = copy.deepcopy(run)
    other["target"] = "a+c"
    other["methods"]["average"] = entry(0.6, 0.1)
    total = many_results([run, other], {})
    inside = total["ranking"]["in_domain"]["regmean > average"]
    assert inside["wins"] == 1 and inside["of"] == 2
    assert inside["mean_difference"] == pytest.approx(0.045)
    outside = total["ranking"]["out_of_domain"]["regmean > average"]
    assert outside["wins"] == 1
    assert outside["mean_difference"] == pytest.approx(0.055)
    summary = total["summary_out_of_domain"]
    assert summary["methods"]["regmean"]["mean"] == pytest.approx(0.22)
    page = many_page(total)
    assert "RegMean above average" in page and "1 of 2" in page
    assert page.count("Unseen domains") == 1


def test_a_run_without_unseen_domains_has_no_such_section(run):
    for method in run["methods"].values():
        method["out_of_domain"] = None
    assert "Unseen domains" not in single_page(run, None)
    total = many_results([run, {**run, "target": "b+c"}], {})
    assert total["summary_out_of_domain"] is None
    assert total["ranking"]["out_of_domain"] == {}
    assert "Unseen domains" not in many_page(total)
