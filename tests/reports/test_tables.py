from fusion_jax.reports.summary import summarise
from fusion_jax.reports.tables import (
    ABSENT,
    interval,
    methods_table,
    number,
    targets_table,
    to_markdown,
    to_text,
)


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert number(-0.25) == "\N{MINUS SIGN}0.250"
    assert number(-0.00001) == "0.000"
    assert number(0.034, sign=True) == "+0.034"
    assert number(-0.0001, sign=True) == "+0.000"
    assert number(None) == ABSENT
    assert interval([0.1, 0.2]) == "[0.100, 0.200]"
    assert interval(None) == ABSENT


def test_own_method_first_then_by_score_and_not_run_last(results):
    table = methods_table(results)
    assert [row[0] for row in table.rows] == [
        "DFWE",
        "logit ensemble",
        "best expert",
        "mean expert",
        "uniform soup",
        "multi-task, fine-tune",
    ]
    assert table.rows[0] == ("DFWE", "0.640", "0.612", "[0.570, 0.650]", "+0.034")
    assert table.rows[-1][1:] == (ABSENT,) * 4
    assert "not run" in table.note


def test_text_aligns_numbers_to_the_right(results):
    lines = to_text(methods_table(results)).splitlines()
    ends = {line.index("0.6") for line in lines if line.startswith(("DFWE", "best"))}
    assert len(ends) == 1
    assert len({len(line) for line in lines[:-1]}) == 1


def test_markdown_has_one_cell_a_column(results):
    lines = to_markdown(methods_table(results)).splitlines()
    assert len({line.count("|") for line in lines[:-2]}) == 1
    assert lines[1].startswith("| --- | ---: |")


def test_targets_stand_in_columns_with_their_mean(results):
    other = {**results, "target": "intent"}
    table = targets_table(summarise([results, other, {**results, "seed": 4}]))
    assert table.columns == ("method", "emotion", "intent", "mean")
    assert table.rows[0] == ("DFWE", "0.612 ± 0.000", "0.612", "0.612")
    assert "2 seeds" in table.note
