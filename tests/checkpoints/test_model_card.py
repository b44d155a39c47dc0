import pytest

from fusion_jax.checkpoints.model_card import model_card

yaml = pytest.importorskip("yaml")
SOURCES = [
    {"name": "a|b", "path": "models/a", "sha256": "00ff", "license": "mit"},
    {"name": "c", "sha256": "11ee"},
]


def card(**changes):
    values = dict(
        name="Emotion, fused",
        method="dfwe",
        base='odd: name # with "quotes"',
        sources=SOURCES,
        coefficients={"a|b": 0.25, "c": 0.75},
        scores={"dev": 0.5, "test": {"mean": 0.48, "interval": [0.4, 0.6]}},
        kind="single_label",
        license="apache-2.0",
        sha256="ab12",
        command="fusion-jax merge ...",
        notes="Nothing else.",
    )
    return model_card(**values | changes)


def test_front_matter_parses_and_keeps_odd_names():
    _, front, body = card().split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["base_model"] == 'odd: name # with "quotes"'
    assert values["license"] == "apache-2.0"
    assert values["pipeline_tag"] == "text-classification"
    assert set(values["tags"]) == {"model-merging", "fusion_jax", "dfwe"}
    assert body.lstrip().startswith("# Emotion, fused")


def test_sources_weights_and_scores_are_in_the_tables():
    text = card()
    assert "| a\\|b | models/a | 00ff | mit |" in text
    assert "| c | 0.7500 |" in text
    assert "| test mean | 0.4800 |" in text
    assert "| test interval | [0.4000, 0.6000] |" in text
    assert "```bash\nfusion-jax merge ...\n```" in text


def test_groups_become_columns_and_what_was_not_run_says_so():
    text = card(
        coefficients={"attention": {"a": 0.1, "b": 0.9}, "mlp": {"a": 1.0, "b": 0.0}},
        scores={"dev": None},
    )
    assert "| group | a | b |" in text
    assert "| attention | 0.1000 | 0.9000 |" in text
    assert "| dev | not measured |" in text


def test_unknown_facts_are_left_out():
    text = card(kind=None, license=None, command=None, notes="", sources=[], scores={})
    front = yaml.safe_load(text.split("---\n", 2)[1])
    assert "license" not in front and "pipeline_tag" not in front
    assert "To make it again" not in text and "Notes" not in text
