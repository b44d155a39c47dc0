"""Two owners of one task: disjoint rows, skewed labels, one dev and test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.data import Task, TaskError
from fusion_jax.data.halves import non_iid_halves


def task(counts):
    """Rows of each class, in turn."""
    rows = [
        {"text": f"{label}-{n}", "target": label}
        for label, count in enumerate(counts)
        for n in range(count)
    ]
    names = tuple(f"c{label}" for label in range(len(counts)))
    return Task("t", "single_label", names, (), {"train": tuple(rows), "dev": rows[:2]})


def texts(half):
    return [row["text"] for row in half.rows("train")]


def share(half, own):
    classes = np.array([row["target"] for row in half.rows("train")])
    return np.isin(classes, own).mean()


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    wanted=st.floats(0.5, 1),
    data=st.data(),
)
def test_halves_are_disjoint_and_of_the_size_asked_for(counts, wanted, data):
    whole = task(counts)
    rows = data.draw(st.integers(1, sum(counts) // 2))
    one, other = non_iid_halves(whole, rows, wanted, seed=3)
    assert len(texts(one)) == len(texts(other)) == rows
    assert not set(texts(one)) & set(texts(other))
    assert set(texts(one) + texts(other)) <= set(texts(whole))
    assert (one.name, other.name) == ("t_a", "t_b")
    assert one.splits["dev"] == other.splits["dev"] == whole.splits["dev"]


@pytest.mark.parametrize("wanted", [0.5, 0.8, 1.0])
def test_each_half_has_its_share_of_its_own_classes(wanted):
    one, other = non_iid_halves(task([200, 200]), 100, wanted, seed=0)
    assert share(one, [0]) == pytest.approx(wanted)
    assert share(other, [1]) == pytest.approx(wanted)


def test_the_draw_is_by_the_seed():
    whole = task([50, 50])
    first, again, another = (
        texts(non_iid_halves(whole, 20, 0.8, seed=s)[0]) for s in (0, 0, 1)
    )
    assert first == again != another


def test_what_cannot_be_halved_is_refused_with_every_reason():
    with pytest.raises(TaskError, match=r"share 0\.2.*rows 9: 10 training rows"):
        non_iid_halves(task([5, 5]), 9, 0.2, seed=0)
    tags = Task(
        "t",
        "token",
        ("O",),
        (),
        {"train": ()}
        | {"train": ({"text": "a", "tokens": ("a",), "target": (0,)},) * 4},
    )
    with pytest.raises(TaskError, match="kind token"):
        non_iid_halves(tags, 2, 0.8, seed=0)
