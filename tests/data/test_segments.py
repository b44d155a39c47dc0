import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.data.segments import LEAST_CONTEXT, Segments, fit, of_row, windows

letters = st.lists(st.sampled_from("abcdefghij"), max_size=40).map(" ".join)
PROPERTY = settings(max_examples=40, deadline=None)


def ids(inputs):
    return [i.ids.tolist() for i in inputs]


@PROPERTY
@given(letters, letters, st.integers(16, 40))
def test_two_texts_are_cut_as_the_tokenizer_cuts_them(tokenizer, a, b, length):
    for second in (None, b):
        ours = fit([Segments(a, second, False)], tokenizer, length)[0]
        # As a list of one: an empty second text in a bare call counts as none.
        theirs = tokenizer(
            [a],
            None if second is None else [second],
            truncation="longest_first",
            max_length=length,
        ).encodings[0]
        assert ours.ids.tolist() == theirs.ids
        assert ours.type_ids.tolist() == theirs.type_ids
        assert [tuple(o) for o in ours.offsets.tolist()] == theirs.offsets
        sides = [-1 if s is None else s for s in theirs.sequence_ids]
        assert ours.side.tolist() == sides


@PROPERTY
@given(letters, letters, st.integers(16, 40))
def test_a_context_loses_its_oldest_tokens_and_the_text_none(tokenizer, a, b, length):
    words = len(a.split())
    ours = fit([Segments(a, b, True)], tokenizer, length)[0]
    if words + 3 + LEAST_CONTEXT > length:
        alone = tokenizer(a, truncation=True, max_length=length)["input_ids"]
        assert ours.ids.tolist() == alone
        return
    room = length - 3 - words
    kept = " ".join(b.split()[max(0, len(b.split()) - room) :])
    assert ours.ids.tolist() == tokenizer([a], [kept])["input_ids"][0]
    assert len(ours.ids) <= length
    # Offsets still point into the whole context.
    for token, (start, end), side in zip(*ours[::3], ours.side, strict=False):
        text = {0: a, 1: b}.get(int(side))
        if text is not None:
            assert tokenizer.convert_tokens_to_ids(text[start:end]) == token


@PROPERTY
@given(letters.filter(bool), letters, st.integers(20, 40), st.integers(0, 4))
def test_windows_are_those_of_the_tokenizer(
    tokenizer, question, context, length, stride
):
    question = " ".join(question.split()[: length // 2])
    ours, items = windows([question], [context], tokenizer, length, stride)
    theirs = tokenizer(
        [question], [context], truncation="only_second", max_length=length,
        stride=stride, return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert ids(ours) == theirs["input_ids"]
    assert [[tuple(o) for o in i.offsets.tolist()] for i in ours] == (
        theirs["offset_mapping"]
    )
    assert items == [0] * len(ours)


def test_a_long_question_leaves_half_to_the_context(tokenizer):
    ours, _ = windows(["a " * 50], ["b " * 50], tokenizer, 32, 8)
    assert all((i.side == 0).sum() == 16 and len(i.ids) <= 32 for i in ours)


def test_a_stride_that_leaves_nothing_new_is_refused(tokenizer):
    with pytest.raises(ValueError, match="stride=30"):
        windows(["a"], ["b " * 50], tokenizer, 32, 30)


def test_roles_of_text_pair_and_context():
    assert of_row({"text": "t"}, "|") == Segments("t", None, False)
    assert of_row({"text": "t", "context": ""}, "|") == Segments("t", None, False)
    assert of_row({"text": "t", "text_pair": "p"}, "|") == Segments("t", "p", False)
    assert of_row({"text": "t", "context": "c"}, "|") == Segments("t", "c", True)
    both = of_row({"text": "t", "text_pair": "p", "context": "c"}, "|")
    assert both == Segments("t | p", "c", True)


def test_the_layout_of_a_byte_level_tokenizer_is_learned_too(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>"])}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab |= {c: i + len(vocab) for i, c in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roberta = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", cls_token="<s>",
    )  # fmt: skip
    inputs = fit(
        [Segments("ab", "c d", False), Segments("ab", None, False)], roberta, 20
    )
    assert ids(inputs) == [
        roberta("ab", "c d")["input_ids"],
        roberta("ab")["input_ids"],
    ]
    assert not np.concatenate([i.type_ids for i in inputs]).any()


def test_one_context_shared_by_many_rows_is_tokenised_once(tokenizer):
    from fusion_jax.data.segments import tokenise

    assert list(tokenise(["a b", "c", "a b"], tokenizer)) == ["a b", "c"]
