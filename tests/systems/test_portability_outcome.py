"""Grids, leaks and summaries of a portability study, by hand."""

import numpy as np
import pytest

from fusion_jax.data import Task
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.systems.portability_defaults import portability_config
from fusion_jax.systems.portability_grid import Lane, Origin, cells_of, origins_of
from fusion_jax.systems.portability_leaks import draws_of, of_items, unseen_items
from fusion_jax.systems.portability_outcome import summary


def grid(**changes):
    config = portability_config()
    config.hosts.a, config.hosts.b = "A", "B"
    config.techniques = {
        "lora": {"peft": {"kind": "lora"}, "learning_rate": 1e-3},
        "ia3": {"peft": {"kind": "ia3"}, "learning_rate": 1e-3},
    }
    config.update(changes)
    return config


def test_a_grid_is_the_product_of_its_sides():
    config = grid(seeds=3, inits=("ported", "scratch"))
    cells = cells_of(config, ("x", "y"))
    # technique x seed x receiver x data; a:b and b:a are all pairs of different hosts.
    assert len(cells) == 2 * 3 * 2 * 2
    assert sum(len(cell.lanes) for cell in cells) == 2 * 3 * 2 * 4 * 2
    assert len({(c[:4], lane) for c in cells for lane in c.lanes}) == 2 * 3 * 2 * 4 * 2
    assert cells[0].lanes[0] == Lane("a", "x", "ported")
    assert len(origins_of(cells)) == 2 * 2 * 2 * 3
    assert Origin("lora", "a", "x", 2) in origins_of(cells)


def test_named_sides_are_a_part_of_the_grid():
    config = grid(pairs=("a:b", "a:a"), combinations=("x:y",))
    cells = cells_of(config, ("x", "y"))
    assert {(cell.host, cell.task) for cell in cells} == {("b", "y"), ("a", "y")}
    assert {lane.host for cell in cells for lane in cell.lanes} == {"a"}


def test_every_wrong_side_is_named():
    with pytest.raises(ValueError, match=r"'a': write ORIGIN:RECEIVER; 'a:c': c is"):
        cells_of(grid(pairs=("a", "a:c")), ("x",))


def task(name, **splits):
    rows = {
        split: tuple({"text": text, "target": n % 2} for n, text in enumerate(texts))
        for split, texts in splits.items()
    }
    return Task(name, "single_label", ("no", "yes"), ("accuracy",), rows)


def test_a_row_is_known_by_its_letters_and_digits():
    origin = task(
        "o", train=["A film, that's fine!", "two"], dev=["Seen  on dev"], test=["three"]
    )
    receiver = task(
        "r", train=["x", "y"], test=["a film thats fine", "seen on DEV.", "three", "4"]
    )
    np.testing.assert_array_equal(
        unseen_items(origin, receiver), [False, False, True, True]
    )
    with pytest.raises(ValueError, match="leave o:r out of the combinations"):
        unseen_items(origin, task("r", train=["x"], test=["two", "TWO"]))


def scores_of(correct):
    stats = np.stack([np.asarray(correct, float), np.ones(len(correct))], axis=1)
    mean = float(np.mean(correct))
    return Scores({"accuracy": mean}, mean, (stats,), 0.0, 0.0)


def test_scores_of_some_items_are_of_those_alone():
    scores = of_items(scores_of([1, 0, 1, 1]), np.array([True, True, False, True]))
    assert scores.mean == pytest.approx(2 / 3)
    assert len(scores.stats[0]) == 3


def row(init, step, seed, score, **more):
    return {
        **{"technique": "lora", "origin": "a", "receiver": "b", "origin_data": "x"},
        **{"receiver_data": "y", "method": "copy"},
        **{"init": init, "steps": step, "seed": seed, "score": score},
        **more,
    }


def test_gains_are_paired_and_parts_are_told_apart():
    right = {
        ("ported", 0): [1, 1, 1, 0, 1, 1, 1, 1],
        ("scratch", 0): [1, 0, 1, 0, 0, 1, 0, 0],
        ("ported", 1): [1, 1, 0, 0, 1, 1, 1, 1],
        ("scratch", 1): [1, 1, 0, 0, 1, 1, 1, 1],
    }
    scores = {key: scores_of(x) for key, x in right.items()}
    rows = [row(i, 0, seed, s.mean) for (i, seed), s in scores.items()]
    other = row("ported", 0, 0, 0.25, method="skip", receiver="c")
    draws = draws_of([*scores.values(), scores["scratch", 0]])
    found = summary([*rows, other], draws)
    equal = found["equal_shapes"]
    assert equal["runs"] == 4 and found["other_sizes"]["runs"] == 1
    entry = equal["scores"]["lora"]["ported"]["0"]
    assert entry["score"] == pytest.approx((7 / 8 + 6 / 8) / 2)
    assert entry["spread"] == pytest.approx(np.std([7 / 8, 6 / 8], ddof=1))
    gain = equal["gains"]["lora"]["scratch"]["0"]
    assert gain["mean"] == pytest.approx((4 / 8 + 0) / 2)
    assert (gain["better"], gain["of"]) == (1, 2)
    low, high = gain["interval"]
    assert 0 < low < gain["mean"] < high
    # Of equal answers the difference is none in every draw.
    same = summary(
        [r for r in rows if r["seed"] == 1], draws[[2, 3]]
    )["equal_shapes"]["gains"]["lora"]["scratch"]["0"]  # fmt: skip
    assert same["interval"] == [0, 0]
    # Nothing to be held against, nothing gained.
    assert found["other_sizes"]["gains"] == {}
    assert equal["by_data"]["different"]["lora"]["ported"]["0"] == entry["score"]
