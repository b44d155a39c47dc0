import numpy as np
import pytest

from fusion_jax.evaluation.readout import TEMPERATURES
from fusion_jax.evaluation.scoring import mean_over_rows, score, score_many


def readout_of(generator, *lead, rows=30, classes=4, **more):
    return {
        "logits": generator.normal(size=(*lead, rows, classes)).astype(np.float32),
        "loss": generator.random((*lead, rows)).astype(np.float32),
        "tempered": generator.random((*lead, rows, len(TEMPERATURES))),
        **more,
    }


CASES = {
    "single_label": ("accuracy", "f1_macro", "f1_weighted"),
    "multi_label": ("f1_micro", "label_accuracy"),
    "choice": ("exact_match",),
    "text_to_text": ("accuracy", "f1_micro"),
}


@pytest.mark.parametrize("kind", list(CASES))
def test_many_scores_equal_scores_one_by_one(kind, generator, make_encoded):
    gold = generator.integers(0, 4, 30)
    references = [(int(g),) for g in gold] if kind == "multi_label" else gold.tolist()
    encoded = make_encoded(kind, references, num_labels=4)
    readouts = readout_of(generator, 6)
    many = score_many(readouts, encoded, CASES[kind])
    for p in range(6):
        one = score({k: v[p] for k, v in readouts.items()}, encoded, CASES[kind])
        assert one.mean == pytest.approx(many.mean[p], abs=1e-12)
        assert one.loss == pytest.approx(many.loss[p], abs=1e-12)
        assert one.calibrated_loss == pytest.approx(many.calibrated_loss[p], abs=1e-9)
        for name in CASES[kind]:
            assert one.values[name] == pytest.approx(many.values[name][p], abs=1e-12)


def test_spans_and_tags_score_in_populations_too(generator, make_encoded):
    spans = make_encoded(
        "span",
        [{"answers": ["b"]}, {"answers": ["a b", "c"]}],
        texts=["a b c"] * 2,
        offsets=[np.array([[0, 1], [2, 3], [4, 5]])] * 2,
    )
    starts = generator.integers(0, 3, (5, 2, 1))
    base = readout_of(generator, 5, rows=2)
    readouts = base | {
        "span": np.concatenate([starts, np.minimum(starts + 1, 2)], -1),
        "confidence": generator.random((5, 2)),
    }
    tags = make_encoded(
        "token",
        [{"tags": [0, 1]}, {"tags": [2]}],
        labels=("O", "B-x", "I-x"),
        token_words=[np.array([0, 1]), np.array([0, -1])],
    )
    tagged = base | {"tags": generator.integers(0, 3, (5, 2, 2))}
    for encoded, many, metrics in (
        (spans, readouts, ("exact_match", "token_f1", "token_f1_micro")),
        (tags, tagged, ("f1_span", "accuracy")),
    ):
        scores = score_many(many, encoded, metrics)
        for p in range(5):
            one = score({k: v[p] for k, v in many.items()}, encoded, metrics)
            assert one.mean == pytest.approx(scores.mean[p], abs=1e-12)


def test_rows_without_weight_do_not_enter_the_loss(generator):
    readout = readout_of(generator, rows=4)
    readout["weight"] = np.array([1.0, 0.0, 1.0, 0.0])
    expected = readout["loss"][[0, 2]].mean(dtype=np.float64)
    assert mean_over_rows(readout, "loss") == pytest.approx(expected)
    np.testing.assert_allclose(
        mean_over_rows(readout, "tempered"), readout["tempered"][[0, 2]].mean(0)
    )


def test_an_empty_split_and_an_unknown_metric_are_refused(generator, make_encoded):
    with pytest.raises(ValueError, match="toy: the split has no items"):
        score({}, make_encoded("single_label", [], num_labels=2), ["accuracy"])
    with pytest.raises(ValueError, match="'bleu'"):
        score({}, make_encoded("single_label", [0], num_labels=2), ["bleu"])
