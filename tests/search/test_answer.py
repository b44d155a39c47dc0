"""The mean is the answer unless another beats it by more than a standard error."""

import numpy as np
import pytest

from fusion_jax.data.encoded import Encoded
from fusion_jax.evaluation.readout import TEMPERATURES
from fusion_jax.evaluation.scoring import score
from fusion_jax.search.answer import choose

ITEMS = 100
ENCODED = Encoded(
    task_name="toy",
    kind="single_label",
    num_labels=2,
    columns={},
    targets={},
    lengths=np.ones(ITEMS, int),
    items=np.arange(ITEMS),
    references=[1] * ITEMS,
    labels=("no", "yes"),
)


def scores(right):
    """Scores of a model that answers the named items right."""
    logits = np.zeros((ITEMS, 2), np.float32)
    logits[:, 0] = 1
    logits[list(right)] = 0, 1
    rows = np.zeros(ITEMS, np.float32)
    tempered = np.zeros((ITEMS, len(TEMPERATURES)), np.float32)
    readout = {"logits": logits, "loss": rows, "tempered": tempered}
    return score(readout, ENCODED, ("accuracy",))


MEAN = range(50)
# Five items differ, three one way and two the other: less than a standard error.
NOISE = [*range(48), 60, 61, 62]
CLEAR = range(62)
CLEARER = range(75)


@pytest.mark.parametrize("other", [MEAN, NOISE, range(40), []])
def test_the_mean_is_preferred_unless_it_is_clearly_beaten(other):
    answer = choose({"mean": scores(MEAN), "other": scores(other)})
    assert answer.name == "mean"


def test_who_is_clearly_better_is_taken_and_the_best_of_several():
    found = {"mean": scores(MEAN), "a": scores(CLEAR), "b": scores(CLEARER)}
    assert choose(found).name == "b"
    assert choose(dict(reversed(found.items()))).name == "b"
    del found["b"]
    assert choose(found).name == "a"


def test_of_equals_the_first_named_is_taken():
    found = {"mean": scores(MEAN), "x": scores(CLEAR), "a": scores(CLEAR)}
    assert choose(found).name == "x"


def test_another_candidate_can_be_the_preferred_one():
    found = {"mean": scores(NOISE), "soup": scores(MEAN)}
    assert choose(found, preferred="soup").name == "soup"


def test_the_advantages_are_the_paired_differences_to_the_mean():
    answer = choose({"mean": scores(MEAN), "noise": scores(NOISE), "x": scores(CLEAR)})
    assert answer.advantages.keys() == {"noise", "x"}
    gain, error = answer.advantages["noise"]
    assert gain == pytest.approx(0.01)
    # Of a sum of independent draws: sqrt((b + c) / N - gain^2) / sqrt(N).
    assert error == pytest.approx(np.sqrt(0.05 - 0.01**2) / 10, rel=0.1)
    assert answer.advantages["x"][0] == pytest.approx(0.12)
