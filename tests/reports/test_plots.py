import xml.etree.ElementTree as ElementTree

import numpy as np

from fusion_jax.reports import plots

NAMES = ["direct", "intent", "topic <b>"]


def drawings(history):
    return {
        "fitness": plots.fitness(history["evaluations"], "dev loss"),
        "paths": plots.coefficient_paths(history["means"], NAMES),
        "plane": plots.plane(history["plane"], NAMES),
        "gains": plots.gains([("a", 0.01), ("b", None), ("c", -0.02)]),
    }


def test_drawings_are_well_formed_and_follow_the_theme(history):
    for name, svg in drawings(history).items():
        ElementTree.fromstring(svg)
        assert "var(--muted)" in svg, name
        assert "#0000" not in svg, name
        assert "<metadata" not in svg
        assert "font-family" not in svg


def test_drawings_are_the_same_each_time_and_share_no_names(history):
    first, second = drawings(history), drawings(history)
    assert first == second
    ids = [
        set(
            element.get("id")
            for element in ElementTree.fromstring(svg).iter()
            if element.get("id")
        )
        for svg in first.values()
    ]
    assert sum(map(len, ids)) == len(set().union(*ids))


def test_expert_names_are_written_as_text(history):
    assert "topic &lt;b&gt;" in plots.plane(history["plane"], NAMES)


def test_grouped_means_and_early_histories_can_be_drawn():
    grouped = np.full((4, 2, 3), 1 / 3)
    assert plots.coefficient_paths(grouped, NAMES).startswith("<svg")
    assert plots.coefficient_paths([[1.0, 0.0, 0.0]], NAMES).startswith("<svg")
    nothing = [{"fitness": None, "origin": "search"}]
    assert plots.fitness(nothing).startswith("<svg")


def test_a_flat_or_broken_plane_can_be_drawn(history):
    flat = history["plane"] | {"loss": [1.0] * len(history["plane"]["loss"])}
    assert plots.plane(flat, NAMES).startswith("<svg")
    broken = history["plane"] | {"walk": []}
    broken["loss"][0] = float("nan")
    assert plots.plane(broken, NAMES).startswith("<svg")
