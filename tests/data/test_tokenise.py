import time

import numpy as np
import pytest

from fusion_jax.data.task import Task, TaskError
from fusion_jax.data.tokenise import encode, load_tokenizer


def task(kind, rows, labels=()):
    return Task("toy", kind, tuple(labels), (), {"train": tuple(rows)})


def test_single_label_rows_keep_their_order_and_class(tokenizer):
    rows = [
        {"text": "the cat sat", "target": 1},
        {"text": "ada ran", "context": "bo : rain", "target": 0},
    ]
    encoded = encode(task("single_label", rows, ["a", "b"]), "train", tokenizer, 32)
    assert encoded.targets["label"].tolist() == [1, 0] == encoded.references
    texts = [tokenizer.decode(ids) for ids in encoded.columns["input_ids"]]
    assert texts[0] == "[CLS] the cat sat [SEP]"
    assert texts[1] == "[CLS] ada ran [SEP] bo : rain [SEP]"
    assert encoded.columns["token_type_ids"][1].tolist() == [0] * 4 + [1] * 4
    assert encoded.lengths.tolist() == [5, 8]
    assert (len(encoded), encoded.num_labels, encoded.pad_token_id) == (2, 2, 0)


def test_multi_label_rows_become_indicator_rows(tokenizer):
    rows = [{"text": "a", "target": (0, 2)}, {"text": "b", "target": ()}]
    made = task("multi_label", rows, ["x", "y", "z"])
    encoded = encode(made, "train", tokenizer, 32)
    assert encoded.targets["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert encoded.references == [(0, 2), ()]


def test_unscored_labels_and_the_decision_rule_are_passed_on(tokenizer):
    made = Task(
        "toy",
        "multi_label",
        ("x", "y"),
        (),
        {"test": ({"text": "a", "target": (0,)},)},
        unscored_labels=("y",),
        decision="softmax:0.1",
    )
    encoded = encode(made, "test", tokenizer, 32)
    assert (encoded.unscored, encoded.decision) == ((1,), "softmax:0.1")


def test_tags_stand_at_the_first_token_of_each_word(tokenizer):
    # 'cats' and 'sats' are two tokens; 'd-e' is three.
    rows = [{"text": "", "tokens": ("cats", "d-e", "sats"), "target": (2, 0, 1)}]
    encoded = encode(task("token", rows, ["O", "B", "I"]), "train", tokenizer, 32)
    tokens = tokenizer.convert_ids_to_tokens(encoded.columns["input_ids"][0])
    assert tokens == ["[CLS]", "cat", "##s", "d", "-", "e", "sat", "##s", "[SEP]"]
    assert encoded.columns["tags"][0].tolist() == [-1, 2, -1, 0, -1, -1, 1, -1, -1]
    assert encoded.token_words[0].tolist() == [-1, 0, -1, 1, -1, -1, 2, -1, -1]
    assert encoded.references == [{"tags": [2, 0, 1]}]


def test_tags_agree_with_the_tokenizers_own_word_numbers(tokenizer):
    words = ["cats", "ran", "home", ",", "ada", "z0", "qqq"] * 3
    rows = [{"text": "", "tokens": words, "target": [0] * len(words)}]
    encoded = encode(task("token", rows, ["O"]), "train", tokenizer, 24)
    theirs = tokenizer(
        words, is_split_into_words=True, truncation=True, max_length=24
    ).encodings[0]
    expected, last = [], None
    for word in theirs.word_ids:
        expected.append(-1 if word is None or word == last else word)
        last = word
    assert encoded.columns["input_ids"][0].tolist() == theirs.ids
    assert encoded.token_words[0].tolist() == expected


def test_a_word_that_becomes_no_token_has_no_place(tokenizer):
    rows = [{"text": "", "tokens": ("a", "\u200d", "b"), "target": (0, 1, 2)}]
    encoded = encode(task("token", rows, ["O", "B", "I"]), "train", tokenizer, 32)
    words = encoded.token_words[0]
    tags = encoded.columns["tags"][0]
    # 'a' and 'b' keep their tags, whatever became of the word between them.
    assert tags[words == 0].tolist() == [0]
    assert tags[words == 2].tolist() == [2]
    assert len(encoded.references[0]["tags"]) == 3


CHOICES = ("@ent0", "@ent01", "@ent2")


def test_every_mention_of_a_candidate_is_marked_at_its_first_token(tokenizer):
    rows = [
        {
            "text": "where is x ?",
            "context": "@ent01 : the cat , @ent2 @ent01",
            "choices": CHOICES,
            "target": 1,
        }
    ]
    encoded = encode(task("choice", rows), "train", tokenizer, 64)
    ids = encoded.columns["choice_ids"][0]
    tokens = tokenizer.convert_ids_to_tokens(encoded.columns["input_ids"][0])
    assert all(tokens[t] == "@" for t in np.flatnonzero(ids >= 0))
    assert ids[ids >= 0].tolist() == [0, 1, 2, 1, 2, 1]
    assert encoded.targets["choice_mask"].tolist() == [[1, 1, 1]]
    assert encoded.targets["label"].tolist() == [1]


def test_candidates_stay_named_when_the_context_is_cut(tokenizer):
    rows = [
        {
            "text": "where ?",
            "context": "@ent2 " + "cat " * 90 + "@ent0",
            "choices": CHOICES,
            "target": 2,
        },
        {"text": "who ?", "choices": ("@ent4", "@ent3"), "target": 0},
    ]
    encoded = encode(task("choice", rows), "train", tokenizer, 48)
    assert encoded.targets["choice_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    ids = encoded.columns["choice_ids"][0]
    assert ids[ids >= 0].tolist() == [0, 1, 2, 0]
    assert encoded.lengths.max() <= 48


def test_a_name_inside_a_longer_name_is_no_mention(tokenizer):
    rows = [
        {
            "text": "x",
            "context": "ada bo ran , ada sat , adas",
            "choices": ("ada", "ada bo"),
            "target": 0,
        }
    ]
    encoded = encode(task("choice", rows), "train", tokenizer, 64)
    ids = encoded.columns["choice_ids"][0]
    assert ids[ids >= 0].tolist() == [0, 1, 1, 0]


CONTEXT = "ada ran home . " * 12 + "the cats sat on the mat ! " + "bo is blue . " * 9


def span_task(answers):
    rows = [{"text": "who sat ?", "context": CONTEXT, "target": tuple(answers)}]
    return task("span", rows)


def test_an_answer_is_recovered_from_its_token_positions_in_every_window(tokenizer):
    start = CONTEXT.index("the cats")
    answers = [{"text": "moon", "start": -1}, {"text": "the cats", "start": start}]
    encoded = encode(span_task(answers), "train", tokenizer, 32, stride=10)
    assert len(encoded) > 3 and set(encoded.items) == {0}
    assert encoded.references == [{"answers": ["moon", "the cats"]}]
    with_answer = encoded.trainable
    assert 1 <= len(with_answer) < len(encoded)
    for row in with_answer:
        first, last = encoded.targets["start"][row], encoded.targets["end"][row]
        offsets = encoded.offsets[row]
        assert encoded.texts[0][offsets[first][0] : offsets[last][1]] == "the cats"
        assert encoded.columns["context_mask"][row][[first, last]].all()


def test_windows_cover_the_whole_context(tokenizer):
    encoded = encode(span_task([]), "train", tokenizer, 32)
    covered = np.zeros(len(CONTEXT), bool)
    for offsets, mask in zip(
        encoded.offsets, encoded.columns["context_mask"], strict=True
    ):
        for start, end in offsets[mask > 0]:
            covered[start:end] = True
    assert covered[[c != " " for c in CONTEXT]].all()
    assert (encoded.targets["start"] == -1).all()


def test_an_answer_cut_by_the_windows_edge_is_no_target(tokenizer):
    answer = {"text": CONTEXT.strip(), "start": 0}
    encoded = encode(span_task([answer]), "train", tokenizer, 32)
    assert (encoded.targets["end"] == -1).all()


def test_what_cannot_be_encoded_is_said(tokenizer, tmp_path):
    made = task("text_to_text", [{"text": "a", "target": "b"}])
    with pytest.raises(TaskError, match="'text_to_text' is not for an encoder"):
        encode(made, "train", tokenizer, 32)
    single = task("single_label", [{"text": "a", "target": 0}], ["x"])
    with pytest.raises(TaskError, match="no dev split"):
        encode(single, "dev", tokenizer, 32)
    with pytest.raises(TaskError, match="max_length=8"):
        encode(single, "train", tokenizer, 8)
    with pytest.raises(TaskError, match="'toy': stride=40"):
        encode(span_task([]), "train", tokenizer, 32, stride=40)
    with pytest.raises(TaskError, match="no tokenizer here"):
        load_tokenizer(tmp_path)


def test_empty_texts_are_read(tokenizer):
    rows = [{"text": "", "target": 0}, {"text": "a", "context": "", "target": 0}]
    encoded = encode(task("single_label", rows, ["x"]), "train", tokenizer, 16)
    assert encoded.lengths.tolist() == [2, 3]


def test_ten_thousand_rows_take_seconds(tokenizer):
    rows = [
        {"text": f"the cat sat {i}", "context": "ada ran home . " * 5, "target": 0}
        for i in range(10_000)
    ]
    made = task("single_label", rows, ["x"])
    begin = time.process_time()
    encode(made, "train", tokenizer, 64)
    assert time.process_time() - begin < 10
