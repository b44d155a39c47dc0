import numpy as np
import pytest

from fusion_jax.evaluation.entities import count_entities, read_scheme
from fusion_jax.evaluation.metrics import METRICS

LABELS = ("O", "B-per", "I-per", "B-loc", "I-loc")


def entities_of(tags):
    """The entities of one sequence, word by word as conlleval goes."""
    found, start, kind = [], None, None
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = start is not None and prefix == "I" and name == kind
        if start is not None and not goes_on:
            found.append((start, place, kind))
            start = kind = None
        if start is None and prefix in ("B", "I"):
            start, kind = place, name
    return set(found)


def test_counts_equal_those_of_a_word_by_word_reading(generator):
    scheme = read_scheme(LABELS)
    for _ in range(50):
        lengths = generator.integers(1, 9, 6)
        gold, predicted = generator.integers(0, 5, (2, lengths.sum()))
        keep = generator.random(lengths.sum()) < 0.7
        predicted = np.where(keep, gold, predicted)
        first = np.zeros(lengths.sum(), bool)
        first[np.cumsum(lengths) - lengths] = True
        found = count_entities(gold, predicted, first, scheme).sum(0)
        expected = np.zeros(3, int)
        for a, b in zip(
            np.split(gold, np.cumsum(lengths)[:-1]),
            np.split(predicted, np.cumsum(lengths)[:-1]),
            strict=True,
        ):
            true = entities_of([LABELS[t] for t in a])
            guess = entities_of([LABELS[t] for t in b])
            expected += [len(true & guess), len(guess), len(true)]
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("tags", "count"),
    [
        (["I-per", "I-per", "O"], 1),  # I without B opens an entity
        (["B-per", "I-loc"], 2),  # another type ends it
        (["B-per", "B-per"], 2),
        (["B-per", "I-per", "I-per"], 1),
        (["O", "O"], 0),
    ],
)
def test_where_entities_begin(tags, count):
    ids = np.array([LABELS.index(t) for t in tags])
    first = np.arange(len(ids)) == 0
    assert count_entities(ids, ids, first, read_scheme(LABELS)).sum(0).tolist() == [
        count,
        count,
        count,
    ]


def test_an_entity_does_not_run_over_the_end_of_its_sequence(make_encoded):
    references = [{"tags": [1]}, {"tags": [2, 0]}]
    encoded = make_encoded("token", references, labels=LABELS)
    metric = METRICS["f1_span"]
    stats = metric.stats(np.array([1, 2, 0]), encoded)
    assert stats.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert metric.value(stats.sum(0)) == 1.0


def test_labels_that_are_no_bio_tags_are_listed():
    with pytest.raises(ValueError, match=r"\['NOUN', 'E-per'\].*accuracy"):
        read_scheme(("O", "NOUN", "E-per"))
