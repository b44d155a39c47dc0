import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.data.batches import (
    StackedBatches,
    TrainBatches,
    bucket_lengths,
    eval_batches,
    stack_batches,
)
from fusion_jax.data.encoded import Encoded
from fusion_jax.data.task import Task
from fusion_jax.data.tokenise import encode


def made_of(lengths, classes=3, kind="single_label", pad=9):
    """Rows whose ids are their own number, so that a batch shows where it took them."""
    lengths = np.asarray(lengths, np.int32)
    targets = {"label": np.arange(len(lengths), dtype=np.int32) % classes}
    if kind == "multi_label":
        targets = {"labels": np.eye(classes, dtype=np.float32)[targets["label"]]}
    return Encoded(
        task_name="toy", kind=kind, num_labels=classes,
        columns={"input_ids": [np.full(n, i, np.int32) for i, n in enumerate(lengths)],
                 "token_type_ids": [np.ones(n, np.int32) for n in lengths]},
        targets=targets, lengths=lengths, items=np.arange(len(lengths)),
        references=list(range(len(lengths))), pad_token_id=pad,
    )  # fmt: skip


def rows_of(batches):
    return sorted(int(i) for b in batches for i in b["index"] if i >= 0)


def check(encoded, batch):
    """Every place of a batch holds its row's tokens, or padding."""
    for place, row in enumerate(batch["index"]):
        n = encoded.lengths[row] if row >= 0 else 0
        assert (batch["input_ids"][place, :n] == row).all()
        assert (batch["input_ids"][place, n:] == encoded.pad_token_id).all()
        assert batch["token_type_ids"][place].sum() == n
        assert batch["attention_mask"][place].sum() == (n if row >= 0 else 1)
        assert batch["mask"][place] == (row >= 0)
        if row >= 0:
            assert batch["label"][place] == encoded.targets["label"][row]


def test_buckets_end_at_the_longest_row():
    assert bucket_lengths(128) == (16, 32, 48, 64, 96, 128)
    assert bucket_lengths(100) == (16, 32, 48, 64, 96, 100)
    assert bucket_lengths(10) == (10,)
    assert bucket_lengths(100, multiple=64) == (64, 128)


lengths = st.lists(st.integers(2, 64), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(16, 600))
def test_eval_batches_show_every_row_once_in_one_shape_a_bucket(values, tokens):
    encoded = made_of(values)
    batches = eval_batches(encoded, tokens_per_batch=tokens, buckets=bucket_lengths(64))
    assert rows_of(batches) == list(range(len(values)))
    shapes = {batch["input_ids"].shape for batch in batches}
    assert len({length for _, length in shapes}) == len(shapes) <= 4
    for batch in batches:
        check(encoded, batch)
        size, length = batch["input_ids"].shape
        assert size * length <= max(tokens, length)
    longest = [encoded.lengths[b["index"][b["mask"] > 0]].max() for b in batches]
    assert longest == sorted(longest)


def test_eval_batches_of_a_small_split_are_not_filled_up_to_the_budget():
    batches = eval_batches(made_of([5] * 20), tokens_per_batch=10_000, buckets=(16,))
    assert [b["input_ids"].shape for b in batches] == [(24, 16)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(16, 2048))
def test_rows_of_one_length_are_split_evenly(count, tokens):
    batches = eval_batches(
        made_of([16] * count), tokens_per_batch=tokens, buckets=(16,)
    )
    size = len(batches[0]["index"])
    assert size * 16 <= max(tokens, 16)
    # A tenth of padding, or less than a row for each batch; a split smaller than a
    # batch is rounded up to a multiple of 8.
    assert size * len(batches) - count <= max(count / 10, len(batches), 7)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 16), st.integers(0, 3))
def test_an_epoch_shows_every_row_once(values, size, seed):
    encoded = made_of(values)
    batches = TrainBatches(encoded, size, seed=seed, buckets=bucket_lengths(64))
    assert batches.steps_per_epoch == -(-len(values) // size)
    for epoch in range(2):
        steps = range(batches.steps_per_epoch)
        shown = [batches.batch(epoch * batches.steps_per_epoch + s) for s in steps]
        assert rows_of(shown) == list(range(len(values)))
        for batch in shown:
            check(encoded, batch)
            assert batch["input_ids"].shape[0] == size
            assert batch["input_ids"].shape[1] in bucket_lengths(64)


def test_a_batch_depends_on_nothing_but_seed_and_step():
    encoded = made_of(np.random.Generator(np.random.PCG64(0)).integers(2, 60, 200))
    make = lambda seed: TrainBatches(encoded, 8, seed=seed, buckets=(16, 32, 64))  # noqa: E731
    forward, backward, other = make(0), make(0), make(1)
    steps = range(3 * forward.steps_per_epoch)
    one = [forward.batch(s)["index"].tolist() for s in steps]
    two = [backward.batch(s)["index"].tolist() for s in reversed(steps)][::-1]
    assert one == two
    assert one != [other.batch(s)["index"].tolist() for s in steps]
    first, second = one[: len(one) // 3], one[len(one) // 3 : 2 * len(one) // 3]
    assert first != second


def test_rows_of_one_length_share_a_batch():
    values = np.random.Generator(np.random.PCG64(0)).integers(2, 64, 640)
    batches = TrainBatches(made_of(values), 16, seed=0, buckets=bucket_lengths(64))
    shown = [batches.batch(s) for s in range(batches.steps_per_epoch)]
    fill = sum(b["attention_mask"].sum() for b in shown) / sum(
        b["input_ids"].size for b in shown
    )
    assert fill > 0.75
    # But the order of lengths is shuffled again.
    order = [b["input_ids"].shape[1] for b in shown]
    assert order != sorted(order)


def test_label_columns_are_padded_and_masked():
    encoded = made_of([4, 5], classes=3, kind="multi_label")
    batch = eval_batches(encoded, tokens_per_batch=64, buckets=(16,), num_labels=5)[0]
    assert batch["label_mask"].tolist() == [1, 1, 1, 0, 0]
    assert batch["labels"].shape == (4, 5)
    assert batch["labels"][:2].tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    with pytest.raises(ValueError, match="num_labels=2 is too few"):
        TrainBatches(encoded, 2, seed=0, buckets=(16,), num_labels=2).batch(0)


def test_a_row_longer_than_every_bucket_is_refused():
    with pytest.raises(ValueError, match="40 tokens but the longest bucket is 32"):
        TrainBatches(made_of([40]), 2, seed=0, buckets=(16, 32))


def test_windows_without_the_answer_are_left_out_of_training(tokenizer):
    context = "ada ran . " * 30 + "the cat sat"
    answers = ({"text": "the cat", "start": context.index("the cat")},)
    rows = ({"text": "who ?", "context": context, "target": answers},)
    encoded = encode(
        Task("toy", "span", (), (), {"train": rows}), "train", tokenizer, 32
    )
    batches = TrainBatches(encoded, 2, seed=0, buckets=(32,))
    batch = batches.batch(0)
    assert batches.steps_per_epoch == 1
    assert (batch["start"] >= 0).tolist() == [True, False]
    assert "label_mask" not in batch
    shown = eval_batches(encoded, tokens_per_batch=64, buckets=(32,))
    assert rows_of(shown) == list(range(len(encoded)))
    empty = ({"text": "who ?", "context": context, "target": ()},)
    bare = encode(Task("toy", "span", (), (), {"train": empty}), "train", tokenizer, 32)
    with pytest.raises(ValueError, match="no row has a target"):
        TrainBatches(bare, 2, seed=0, buckets=(32,))


def test_stacked_batches_are_the_members_side_by_side():
    values = [[5] * 7, [30] * 20]
    members = [
        TrainBatches(made_of(v, classes=c), 4, seed=0, buckets=(16, 32), num_labels=4)
        for v, c in zip(values, (2, 4), strict=True)
    ]
    stacked = StackedBatches(members)
    assert (stacked.steps_per_epoch, stacked.batch_size) == (5, 4)
    for step in range(12):
        batch = stacked.batch(step)
        assert batch["input_ids"].shape == (2, 4, 32)
        assert batch["label_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        for k, member in enumerate(members):
            alone = member.batch(step)
            length = alone["input_ids"].shape[1]
            for name, array in alone.items():
                cut = batch[name][k]
                if array.ndim == 2 and array.shape[1] == length:
                    assert not batch["attention_mask"][k][:, length:].any()
                    cut = cut[:, :length]
                np.testing.assert_array_equal(cut, array)


def test_batches_of_different_form_are_not_stacked():
    one = TrainBatches(made_of([4, 4]), 2, seed=0, buckets=(16,))
    three = TrainBatches(made_of([4] * 3, classes=4), 2, seed=0, buckets=(16,))
    with pytest.raises(ValueError, match="batches differ in label_mask"):
        stack_batches([one.batch(0), three.batch(0)])
    with pytest.raises(ValueError, match="one batch size"):
        StackedBatches([one, TrainBatches(made_of([4]), 1, seed=0, buckets=(16,))])


def test_padding_of_tags_and_choices_is_ignored_by_its_value(tokenizer):
    rows = ({"text": "", "tokens": ("a", "b"), "target": (0, 1)},)
    made = Task("toy", "token", ("O", "B"), (), {"train": rows})
    batch = TrainBatches(
        encode(made, "train", tokenizer, 16), 2, seed=0, buckets=(16,)
    ).batch(0)
    assert batch["tags"][0].tolist() == [-1, 0, 1] + [-1] * 13
    assert (batch["tags"][1] == -1).all()
    rows = ({"text": "x", "choices": ("a", "b"), "target": 1},)
    encoded = encode(
        Task("toy", "choice", (), (), {"train": rows}), "train", tokenizer, 16
    )
    batch = TrainBatches(encoded, 1, seed=0, buckets=(16,), num_labels=4).batch(0)
    assert batch["choice_mask"].tolist() == [[1, 1, 0, 0]]
    wide = stack_batches([batch, {**batch}])
    assert wide["choice_ids"].shape == (2, 1, 16)
