import numpy as np
import pytest

from fusion_jax.evaluation.predictions import parse_decision, predict, split_words


def test_classes_follow_the_items_order(make_encoded):
    encoded = make_encoded(
        "single_label", [0, 1, 2], num_labels=3, items=np.array([2, 0, 1])
    )
    logits = np.eye(3)[[2, 0, 1]]
    assert predict({"logits": logits}, encoded).tolist() == [0, 1, 2]
    many = predict({"logits": np.stack([logits, -logits])}, encoded)
    assert many.shape == (2, 3)
    assert many[0].tolist() == [0, 1, 2]


def test_items_without_a_row_of_their_own_are_refused(make_encoded):
    encoded = make_encoded("single_label", [0, 1], num_labels=2, items=np.array([0, 0]))
    with pytest.raises(ValueError, match="exactly one row an item"):
        predict({"logits": np.zeros((2, 2))}, encoded)


def test_decision_rules(make_encoded):
    logits = np.array([[2.0, 1.9, -9.0], [-1.0, -1.1, -5.0], [9.0, 0.0, 0.0]])
    sigmoid = make_encoded("multi_label", [(), (), ()], num_labels=3)
    assert predict({"logits": logits}, sigmoid).tolist() == [
        [True, True, False],
        [False] * 3,
        [True, False, False],
    ]
    strict = make_encoded(
        "multi_label", [(), (), ()], num_labels=3, decision="sigmoid:0.9"
    )
    assert predict({"logits": logits}, strict).sum() == 1
    soft = make_encoded(
        "multi_label", [(), (), ()], num_labels=3, decision="softmax:0.1"
    )
    assert predict({"logits": logits}, soft).tolist() == [
        [True, True, False],
        [True, True, False],
        [True, False, False],
    ]


def test_softmax_rule_falls_back_to_the_largest(make_encoded):
    encoded = make_encoded("multi_label", [()], num_labels=20, decision="softmax:0.5")
    logits = np.zeros((1, 20))
    logits[0, 7] = 0.1
    assert np.flatnonzero(predict({"logits": logits}, encoded)).tolist() == [7]


@pytest.mark.parametrize("rule", ["top:3", "sigmoid:1.5", "softmax:x"])
def test_unknown_decision_rules_are_named(rule):
    with pytest.raises(ValueError, match=rule):
        parse_decision(rule)


def test_tags_come_from_first_tokens_and_cut_words_are_outside(make_encoded):
    encoded = make_encoded(
        "token",
        [{"tags": [1, 1, 1]}, {"tags": [1]}],
        labels=("B-x", "I-x", "O"),
        token_words=[np.array([-1, 0, -1, 1, -1]), np.array([-1, 0, -1])],
    )
    tags = np.array([[9, 1, 9, 0, 9], [9, 0, 9, -1, -1]])
    found = predict({"tags": tags}, encoded)
    assert found.tolist() == [1, 0, 2, 0]  # the third word was cut off: 'O'
    assert [x.tolist() for x in split_words(found, encoded)] == [[1, 0, 2], [0]]
    many = predict({"tags": np.stack([tags, tags])}, encoded)
    assert many.tolist() == [found.tolist()] * 2


def test_the_most_confident_window_answers(make_encoded):
    encoded = make_encoded(
        "span",
        [{"answers": ["blue"]}, {"answers": ["x"]}],
        items=np.array([0, 0, 1]),
        texts=["the blue cat", "x y"],
        offsets=[
            np.array([[0, 3], [4, 8], [9, 12]]),
            np.array([[4, 8], [9, 12]]),
            np.array([[0, 1], [2, 3]]),
        ],
    )
    readout = {
        "span": np.array([[[1, 2], [0, 0], [0, 1]], [[0, 0], [1, 1], [1, 1]]]),
        "confidence": np.array([[1.0, 3.0, 0.0], [2.0, 2.0, 0.0]]),
    }
    found = predict(readout, encoded)
    assert found.tolist() == [["blue", "x y"], ["the", "y"]]  # a tie: first window
    one = predict({k: v[0] for k, v in readout.items()}, encoded)
    assert one.tolist() == ["blue", "x y"]
