import re
from html.parser import HTMLParser

import pytest

from fusion_jax.reports.html import write_report

VOID = {"meta", "wbr", "br", "path", "use", "line", "circle", "rect"}


class Checker(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    page = path.read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return page, " ".join("".join(checker.text).split())


@pytest.fixture
def page(results, history, tmp_path):
    return read(write_report(results, history, tmp_path / "report.html"))


def test_the_answer_comes_first(page):
    html, text = page
    assert "<h1>DFWE scores 0.612 [0.570, 0.650] on test, 0.034 above" in html
    assert "above 1 of the 2 other ways to get one model" in text
    assert text.index("DFWE scores") < text.index("Methods")


def test_every_section_is_there(page):
    for title in (
        "Methods",
        "What each source contributed",
        "Search",
        "The loss between three experts",
        "Time by stage",
        "How it was run",
    ):
        assert f"<h2>{title}</h2>" in page[0]
    assert "search.objective" in page[1]
    assert "1 min 35 s" in page[1]


def test_how_the_answer_was_chosen_is_said(results, history, tmp_path):
    results["answer"] = {"chosen": "mean", "advantage_over_mean": {}}
    results["dev_without"] = {"direct": 0.6, "intent": None, "topic <b>": 0.63}
    _, text = read(write_report(results, history, tmp_path / "report.html"))
    assert "The answer is the distribution's mean" in text
    assert "dev without it" in text
    results["answer"] = {
        "chosen": "intent",
        "advantage_over_mean": {
            "intent": {"difference": 0.0211, "standard_error": 0.01}
        },
    }
    _, text = read(write_report(results, history, tmp_path / "report.html"))
    assert "The answer is intent: on dev it is better" in text
    assert "by 0.021, more than one standard error (0.010)" in text


def test_metrics_are_named_in_either_form(results, tmp_path):
    for metric in (["f1_micro", "f1_weighted"], "f1_micro + f1_weighted"):
        results["metric"] = metric
        _, text = read(write_report(results, None, tmp_path / "report.html"))
        assert "score: mean of f1_micro and f1_weighted" in text


def test_nothing_is_loaded_from_outside(page):
    html = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page[0])
    assert not re.search(r'(src|href)="(https?:)?//', html)
    assert "@import" not in html
    assert "url(http" not in html


def test_plots_have_alternative_texts_and_names_are_unique(page):
    plots = re.findall(r"<figure.*?</figure>", page[0], re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        assert re.search(r'<svg role="img" aria-label="[^"]{20,}"', plot)
    ids = re.findall(r'\bid="([^"]+)"', page[0])
    assert len(ids) == len(set(ids))


def test_what_was_not_run_is_a_dash_with_its_reason(page):
    assert '<span title="not run" aria-label="not run">' in page[0]


def test_names_from_outside_are_escaped(page):
    assert "topic <b>" not in page[0]
    assert "topic &lt;b&gt;" in page[0]


def test_light_and_dark_are_both_defined(page):
    assert "prefers-color-scheme: dark" in page[0]
    used = set(re.findall(r"var\((--\w+)\)", page[0]))
    defined = set(re.findall(r"(--\w+):", page[0]))
    assert used <= defined


def test_a_run_without_history_or_weights_still_has_its_table(results, tmp_path):
    results |= {
        "coefficients": None,
        "experts": None,
        "seconds": None,
        "config": None,
        "candidates": None,
        "versions": None,
    }
    html, _ = read(write_report(results, None, tmp_path / "report.html"))
    assert "<h2>Methods</h2>" in html
    assert "<h2>Search</h2>" not in html


def test_grouped_coefficients_have_a_column_a_group(results, history, tmp_path):
    row = results["coefficients"]
    results["coefficients"] = {"lower": row, "upper": row, "head": row}
    history["means"] = [[m, m, m] for m in history["means"]]
    html, _ = read(write_report(results, history, tmp_path / "report.html"))
    for group in ("lower", "upper", "head"):
        assert f'<th scope="col">{group}</th>' in html


def test_many_runs_have_a_table_and_links_to_their_reports(results, tmp_path):
    results["methods"]["pretrain_finetune_best"] = results["methods"]["best_expert"]
    runs = [
        {**results, "target": target, "seed": seed}
        for target in ("emotion", "a/b & c")
        for seed in (0, 1)
    ]
    html, text = read(write_report({"runs": runs}, None, tmp_path / "report.html"))
    assert "DFWE scores 0.612 on average over 2 targets (test)" in text
    assert 'href="emotion/seed_1/report.html"' in html
    assert html.count("<details") == 4 + 2
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert f'id="{anchor}"' in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), [x for x in ids if ids.count(x) > 1][:3]


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no runs"):
        write_report({"runs": []}, None, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
