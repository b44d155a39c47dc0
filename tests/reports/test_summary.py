import pytest

from fusion_jax.reports.summary import (
    compare,
    headline,
    many_headline,
    summarise,
)


def test_headline_is_the_answer_in_one_sentence(results):
    assert headline(results) == (
        "DFWE scores 0.612 [0.570, 0.650] on test, 0.034 above the mean expert."
    )


def test_headline_without_test_split_says_so(results):
    for scores in results["methods"].values():
        scores["test"] = scores["test_interval"] = None
    assert headline(results) == (
        "DFWE scores 0.640 on dev (there is no test split), 0.040 above the mean "
        "expert."
    )


def test_headline_falls_back_to_what_was_run(results):
    results["methods"] = {"dfwe": {"dev": 0.5, "test": 0.4, "test_interval": None}}
    assert headline(results) == "DFWE scores 0.400 on test."
    results["methods"]["dfwe"] = None
    assert headline(results) == "DFWE was not run."


@pytest.mark.parametrize(
    ("score", "other", "text"),
    [
        (0.5, 0.45, "0.050 above X"),
        (0.45, 0.5, "0.050 below X"),
        (0.5001, 0.4999, "level with X"),
    ],
)
def test_gain_agrees_with_the_rounded_scores(score, other, text):
    assert compare(score, other, "X") == text


def run(target, seed, **tests):
    return {
        "target": target,
        "seed": seed,
        "methods": {n: {"dev": t, "test": t} for n, t in tests.items()},
    }


def test_means_are_over_seeds_then_targets():
    summary = summarise(
        [
            run("a", 0, dfwe=0.5, mean_expert=0.4),
            run("a", 1, dfwe=0.7, mean_expert=0.4),
            run("b", 0, dfwe=0.2, mean_expert=0.3),
        ]
    )
    own = summary["methods"]["dfwe"]
    assert own["targets"]["a"]["score"] == pytest.approx(0.6)
    assert own["targets"]["a"]["spread"] == pytest.approx(0.1 * 2**0.5)
    assert own["targets"]["b"]["spread"] is None
    assert own["mean"] == pytest.approx(0.4)
    assert summary["seeds"] == [0, 1]
    assert many_headline(summary) == (
        "DFWE scores 0.400 on average over 2 targets (test), 0.050 above mean expert, "
        "ahead on 1 of 2."
    )


def test_a_method_missing_in_one_run_has_no_mean():
    summary = summarise(
        [
            run("a", 0, dfwe=0.5, greedy_soup=0.6),
            run("b", 0, dfwe=0.5, greedy_soup=None),
        ]
    )
    assert summary["methods"]["greedy_soup"]["mean"] is None
    assert summary["methods"]["greedy_soup"]["targets"]["a"]["score"] == 0.6


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="no runs to summarise"):
        summarise([])
