import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from fusion_jax.checkpoints.lazy import open_checkpoint
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.checkpoints.vocabulary.chat_template import (
    chat_template,
    write_template,
)
from fusion_jax.checkpoints.vocabulary.files import (
    read_vocabularies,
    read_vocabulary,
    vocabulary_tensors,
    write_tokenizer,
)
from fusion_jax.checkpoints.vocabulary.union import Vocabulary, align

T1, T2 = "[UNK] x y z".split(), "[UNK] y x q r".split()
ROWS = {
    "t1": np.arange(1.0, 5.0, dtype=np.float32)[:, None] * np.ones(3, np.float32),
    "t2": 100 * np.arange(1.0, 6.0, dtype=np.float32)[:, None] * np.ones(3, np.float32),
}
PUBLIC_CASES = {
    "base": ({"source": "base"}, [50.5, 151, 101.5, 4]),
    "a model": ({"source": "t2"}, [50.5, 101.5, 151, 400, 500]),
    "union": ({"source": "union"}, [50.5, 151, 101.5, 4, 400, 500]),
    "tokens": (
        {
            "source": "union",
            "pad_to_multiple_of": 8,
            "tokens": {
                "x": {"source": "t2", "force": True},
                "z": {"source": {"kind": "zero"}},
                "q": {"source": {"kind": "zero"}, "force": True},
                "r": {"source": {"kind": "zero"}, "force": True},
                "new": {
                    "source": {"kind": "model_token", "model": "t2", "token_id": 4}
                },
            },
        },
        [50.5, 300, 101.5, 2, 0, 0, 500, 136.2857],
    ),
    "a new token with source base": (
        {"source": "base", "tokens": {"new": {"source": {"kind": "zero"}}}},
        [50.5, 151, 101.5, 4, 0],
    ),
}


def vocabulary(tokens, rows=None):
    return Vocabulary(Path(), {t: i for i, t in enumerate(tokens)}, {}, rows)


def pair():
    return {"t1": vocabulary(T1), "t2": vocabulary(T2)}


def word_level(words):
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return inner


def folder_of(path, inner, **config):
    path.mkdir()
    inner.save(str(path / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (path / "tokenizer_config.json").write_text(json.dumps(values))
    return path


def loaded(folder):
    """Token -> id as the two libraries read a folder."""
    from transformers import AutoTokenizer

    light = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return light, AutoTokenizer.from_pretrained(str(folder)).get_vocab()


@pytest.mark.parametrize("case", PUBLIC_CASES)
def test_merged_rows_have_the_numbers_of_the_public_cases(case):
    options, want = PUBLIC_CASES[case]
    aligned = align(pair(), {"base": "t1", **options}).apply(ROWS)
    merged = (aligned["t1"] + aligned["t2"]) / 2
    np.testing.assert_allclose(merged, np.outer(want, np.ones(3)), rtol=1e-6)


def test_a_merged_folder_of_the_public_case_opens_with_the_ids_of_its_rows(tmp_path):
    folders = {
        name: folder_of(tmp_path / name, word_level(words), unk_token="[UNK]")
        for name, words in (("t1", T1), ("t2", T2))
    }
    found = read_vocabularies(folders)
    alignment = align(found, {"base": "t1", **PUBLIC_CASES["tokens"][0]})
    (tmp_path / "out").mkdir()
    write_tokenizer(alignment, folders["t1"], found, tmp_path / "out")
    ids = {t: i for i, t in enumerate("[UNK] x y z q r new".split())}
    assert dict(alignment.ids) == ids
    assert loaded(tmp_path / "out") == (ids, ids)
    encoded = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).encode(
        "q new y"
    )
    assert encoded.tokens == ["q", "new", "y"]


TOKENS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)
VOCABULARIES = st.lists(TOKENS, min_size=1, max_size=4)


@settings(max_examples=50)
@given(VOCABULARIES, st.booleans(), st.integers(0, 3))
def test_every_token_keeps_the_row_of_its_own_model(lists, union, padding):
    found = {f"m{k}": vocabulary(tokens) for k, tokens in enumerate(lists)}
    rng = np.random.default_rng(0)
    tensors = {
        f"m{k}": rng.normal(size=(len(tokens) + padding, 2)).astype(np.float32)
        for k, tokens in enumerate(lists)
    }
    source = "union" if union else "m0"
    alignment = align(found, {"base": "m0", "source": source})
    for label, out in alignment.apply(tensors).items():
        assert out.shape == (alignment.num_rows, 2)
        for token, i in alignment.ids.items():
            if token in found[label].ids:
                own = tensors[label][found[label].ids[token]]
                np.testing.assert_array_equal(out[i], own)


@settings(max_examples=50)
@given(VOCABULARIES)
def test_a_union_has_all_tokens_in_the_order_of_first_appearance(lists):
    found = {f"m{k}": vocabulary(tokens) for k, tokens in enumerate(lists)}
    first = list(dict.fromkeys(token for tokens in lists for token in tokens))
    alignment = align(found, {"base": "m0"})
    assert list(alignment.tokens) == first
    assert list(alignment.ids.values()) == list(range(len(first)))
    # R14 of other tools: ids that depend on the hash seed of the process.
    shuffled = {
        k: Vocabulary(v.folder, dict(reversed(list(v.ids.items()))))
        for k, v in found.items()
    }
    assert list(align(shuffled, {"base": "m0"}).ids.items()) == list(
        alignment.ids.items()
    )


@settings(max_examples=50)
@given(VOCABULARIES, st.integers(1, 4), st.booleans())
def test_rows_follow_the_rule_written_as_loops(lists, multiple, with_base):
    found = {f"m{k}": vocabulary(tokens) for k, tokens in enumerate(lists)}
    rng = np.random.default_rng(1)
    tensors = {m: rng.normal(size=(len(v.ids), 2)) for m, v in found.items()}
    base = list(found)[-1] if with_base else None
    alignment = align(found, {"base": base, "pad_to_multiple_of": multiple})
    assert alignment.num_rows % multiple == 0
    for label, out in alignment.apply(tensors).items():
        want = []
        for token in alignment.tokens:
            having = {
                m: tensors[m][v.ids[token]] for m, v in found.items() if token in v.ids
            }
            if label in having:
                want.append(having[label])
            elif len(having) == 1:
                want.append(next(iter(having.values())))
            elif base in having:
                want.append(having[base])
            else:
                want.append(sum(having.values()) / len(having))
        mean = sum(want) / len(want)
        want += [mean] * (alignment.num_rows - len(want))
        np.testing.assert_allclose(out, want, atol=1e-12)
        pieces = [
            alignment.rows(label, tensors, i, i + 2)
            for i in range(0, alignment.num_rows, 2)
        ]
        np.testing.assert_array_equal(np.concatenate(pieces), out)


def test_ids_do_not_depend_on_the_hash_seed_of_the_process():
    code = (
        "from pathlib import Path\n"
        "from fusion_jax.checkpoints.vocabulary.union import Vocabulary, align\n"
        "words = {'t1': '[UNK] x y z', 't2': '[UNK] y x q r', 't3': 'k j i h g f'}\n"
        "found = {m: Vocabulary(Path(), {t: i for i, t in enumerate(w.split())})"
        " for m, w in words.items()}\n"
        "print(*align(found, {'base': 't1'}).tokens)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {"[UNK] x y z q r k j i h g f\n"}


def test_the_base_comes_first_wherever_it_stands():
    alignment = align(pair(), {"base": "t2", "source": "union"})
    assert alignment.tokens == ("[UNK]", "y", "x", "q", "r", "z")
    assert alignment.donor == "t2"


def test_without_a_base_the_first_model_gives_the_order_and_means_fill():
    found = {**pair(), "t3": vocabulary(["[UNK]"])}
    tensors = {**ROWS, "t3": np.full((1, 3), 7, np.float32)}
    alignment = align(found, {})
    assert alignment.tokens == ("[UNK]", "x", "y", "z", "q", "r")
    np.testing.assert_allclose(
        alignment.apply(tensors)["t3"][:, 0], [7, 151, 101.5, 4, 400, 500]
    )


def test_rows_beyond_the_embedding_count_as_absent_and_are_said():
    found = {"t1": vocabulary(T1, rows=3), "t2": vocabulary([*T2, "z"], rows=6)}
    alignment = align(found, {"base": "t1"})
    tensors = {"t1": ROWS["t1"][:3], "t2": np.arange(6.0)[:, None] * np.ones(3)}
    np.testing.assert_array_equal(alignment.apply(tensors)["t1"][3], [5, 5, 5])
    assert alignment.notes == (
        "t1: its embedding has 3 rows and none for 'z'; they count as absent there",
    )


def test_gaps_in_the_ids_of_the_donor_stay_and_are_padding():
    found = {"a": Vocabulary(Path(), {"u": 0, "v": 2}), "b": vocabulary(["w"])}
    alignment = align(found, {"base": "a"})
    assert dict(alignment.ids) == {"u": 0, "v": 2, "w": 3}
    tensors = {"a": np.array([1.0, 50.0, 3.0]), "b": np.array([8.0])}
    np.testing.assert_allclose(alignment.apply(tensors)["a"], [1, 4, 3, 8])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_stay_those_of_each_model(dtype):
    tensors = {"t1": ROWS["t1"].astype(dtype), "t2": ROWS["t2"]}
    out = align(pair(), {"base": "t1", "pad_to_multiple_of": 4}).apply(tensors)
    assert out["t1"].dtype == dtype and out["t2"].dtype == np.float32
    assert out["t1"][4:6, 0].astype(float).tolist() == [400, 500]


def test_biases_are_aligned_and_one_model_can_be_asked_for():
    alignment = align(pair(), {"base": "t1"})
    out = alignment.apply({k: v[:, 0] for k, v in ROWS.items()}, wanted=("t2",))
    assert list(out) == ["t2"]
    np.testing.assert_array_equal(out["t2"], [100, 300, 200, 4, 400, 500])


def test_memory_beside_the_result_does_not_grow_with_the_vocabulary_times_width():
    size, width = 40_000, 256
    words = [str(i) for i in range(size)]
    found = {"a": vocabulary(words), "b": vocabulary(words[::-1])}
    tensor = np.ones((size, width), np.float32)
    alignment = align(found, {"base": "a", "source": "b", "pad_to_multiple_of": 1001})
    tracemalloc.start()
    out = alignment.apply({"a": tensor, "b": tensor}, wanted=("a",))["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - out.nbytes < 0.8 * out.nbytes


def test_all_faults_of_the_options_are_named_at_once():
    tokens = {
        "a": {"source": "t9"},
        "b": {"source": {"kind": "model_token", "model": "t2", "token_id": 5}},
        "c": {"source": {"kind": "model_token", "model": "t2", "token": "none"}},
        "d": {"source": {"kind": "model_token", "model": "t2"}},
        "e": {"source": {"kind": "mean"}},
        "f": {"forced": True},
        "q": {"source": "t1"},
        "g": {"force": 1},
    }
    options = {
        "base": "t7",
        "source": "all",
        "pad_to_multiple_of": 0,
        "tokens": tokens,
        "extra": 1,
    }
    with pytest.raises(CheckpointError) as caught:
        align(pair(), options)
    for part in (
        "option 'extra' is unknown",
        "base 't7' is no model here; there are t1, t2",
        "source 'all' is neither 'union', 'base' nor one of t1, t2",
        "pad_to_multiple_of must be 1 or more; it is 0",
        "token 'a': 't9' is no model here",
        "token 'b': row 5 is outside the 5 rows of t2 (0 to 4)",
        "token 'c': the vocabulary of t2 has no token 'none'",
        "token 'd': give one of token and token_id of t2",
        "token 'e': its source must be a model",
        "token 'f' takes 'source' and 'force'",
        "token 'q': the vocabulary of t1 has no token 'q'",
        "token 'g': force must be true or false, not 1",
    ):
        assert part in str(caught.value)


def test_a_row_of_the_padding_of_an_embedding_can_be_taken():
    found = {"t1": vocabulary(T1, rows=8), "t2": vocabulary(T2)}
    source = {"kind": "model_token", "model": "t1", "token_id": 7}
    alignment = align(found, {"base": "t1", "tokens": {"new": {"source": source}}})
    tensors = {"t1": np.arange(8.0), "t2": np.arange(5.0)}
    assert alignment.apply(tensors)["t2"][-1] == 7
    with pytest.raises(CheckpointError, match="takes row 7 of t1, whose tensor has 4"):
        alignment.apply({"t1": np.arange(4.0), "t2": np.arange(5.0)})


def test_rows_of_different_width_and_strangers_are_refused():
    tensors = {"t1": np.zeros((4, 2)), "t2": np.zeros((5, 3)), "t3": np.zeros((5, 3))}
    with pytest.raises(CheckpointError) as caught:
        align(pair(), {"base": "t1"}).apply(tensors)
    assert "t1 (4, 2), t2 (5, 3)" in str(caught.value)
    assert "t3 is no model of this alignment (t1, t2)" in str(caught.value)


def bpe():
    vocab = {t: i for i, t in enumerate(["<unk>", "a", "b", "c", "ab"])}
    inner = Tokenizer(models.BPE(vocab, [("a", "b")], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<s>", "</s>"])
    return inner


def word_piece():
    words = ["[UNK]", "[PAD]", "cat", "##s", "con", "##cat", "##e", "q"]
    vocab = {t: i for i, t in enumerate(words)}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return inner


def unigram():
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("ab", -1.5)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["</s>"])
    return inner


def words_with_an_added_token():
    inner = word_level(["[UNK]", "dog", "cate", "cat"])
    inner.add_tokens([AddedToken("<|end|>", lstrip=True, special=True)])
    return inner


@pytest.mark.parametrize("donor", [bpe, word_piece, unigram, words_with_an_added_token])
def test_tokenizers_of_every_kind_take_the_tokens_of_the_others(tmp_path, donor):
    folders = {
        "a": folder_of(tmp_path / "a", donor()),
        "b": folder_of(tmp_path / "b", words_with_an_added_token()),
        "c": folder_of(tmp_path / "c", bpe()),
    }
    found = read_vocabularies(folders)
    options = {"base": "a", "tokens": {"<new>": None}}
    alignment = align(found, options)
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(alignment, folders["a"], found, out)
    assert loaded(out) == (dict(alignment.ids), dict(alignment.ids))
    assert set(alignment.ids) == {"<new>"}.union(*(set(v.ids) for v in found.values()))
    before = Tokenizer.from_file(str(folders["a"] / "tokenizer.json"))
    after = Tokenizer.from_file(str(out / "tokenizer.json"))
    flags = {str(t.content): t for t in after.get_added_tokens_decoder().values()}
    assert flags["<|end|>"].special and flags["<|end|>"].lstrip
    assert "dog" not in flags
    # What the donor reads without its unknown token, it reads as before.
    for text in {
        bpe: ["ab c</s>"],
        word_piece: ["concat cats"],
        unigram: ["abb</s>"],
    }.get(donor, ["dog cat<|end|>"]):
        assert after.encode(text).tokens == before.encode(text).tokens
    mixed = after.encode("<|end|><new>").tokens
    assert mixed == ["<|end|>", "<new>"]


def test_the_files_of_the_donor_are_copied_when_its_tokens_are_the_output_s(tmp_path):
    folders = {
        "a": folder_of(tmp_path / "a", bpe(), chat_template="{{ 1 }}"),
        "b": folder_of(tmp_path / "b", word_piece()),
    }
    (folders["a"] / "vocab.json").write_text("{}")
    (folders["a"] / "model.safetensors").write_text("no tokenizer file")
    found = read_vocabularies(folders)
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(
        align(found, {"base": "a", "source": "base"}), folders["a"], found, out
    )
    names = {"tokenizer.json", "tokenizer_config.json", "vocab.json"}
    assert {file.name for file in out.iterdir()} == names
    for name in names:
        assert (out / name).read_bytes() == (folders["a"] / name).read_bytes()


def test_special_tokens_that_only_the_config_names_are_numbered_as_transformers_does(
    tmp_path,
):
    folder = folder_of(
        tmp_path / "a",
        words_with_an_added_token(),
        pad_token="<pad>",
        eos_token="<|end|>",
        unk_token="[UNK]",
        image_token="<image>",
        extra_special_tokens=["<e1>", "<e0>"],
    )
    found = read_vocabulary(folder)
    assert found.ids["<pad>"] == 5 and found.added["<pad>"]["special"]
    assert dict(found.ids) == loaded(folder)[1]
    alignment = align({"a": found}, {"base": "a", "source": "base"})
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(alignment, folder, {"a": found}, out)
    assert loaded(out) == (dict(found.ids), dict(found.ids))


def test_added_tokens_of_the_config_are_kept_and_extended(tmp_path):
    entry = {
        "content": "<|end|>",
        "lstrip": True,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    a = folder_of(
        tmp_path / "a", words_with_an_added_token(), added_tokens_decoder={"4": entry}
    )
    b = folder_of(tmp_path / "b", bpe())
    found = read_vocabularies({"a": a, "b": b})
    alignment = align(found, {"base": "a"})
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(alignment, a, found, out)
    listed = json.loads((out / "tokenizer_config.json").read_text())
    decoder = listed["added_tokens_decoder"]
    assert decoder["4"] == entry
    assert decoder[str(alignment.ids["</s>"])]["content"] == "</s>"
    assert loaded(out) == (dict(alignment.ids), dict(alignment.ids))


@pytest.mark.parametrize(
    "listed", [[(2, "x"), (5, "y")], [(5, "y"), (0, "a"), (7, "z")]]
)
def test_ids_are_those_of_the_library_even_where_the_file_says_others(tmp_path, listed):
    folder = folder_of(tmp_path / "a", word_level(["[UNK]", "a"]))
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] = [
        {"id": i, "content": token, "special": False, **off} for i, token in listed
    ]
    file.write_text(json.dumps(document))
    assert (dict(read_vocabulary(folder).ids),) * 2 == loaded(folder)


def test_a_folder_with_vocab_txt_alone_is_read_through_transformers(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s"]
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "config.json").write_text('{"model_type": "bert", "vocab_size": 8}')
    found = read_vocabulary(folder)
    assert dict(found.ids) == {w: i for i, w in enumerate(words)}
    assert found.rows == 8
    alignment = align({"a": found}, {"base": "a", "tokens": {"<new>": {}}})
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "bert", "vocab_size": 8}')
    write_tokenizer(alignment, folder, {"a": found}, out)
    assert not (out / "vocab.txt").exists()
    assert loaded(out) == (dict(alignment.ids), dict(alignment.ids))


def test_folders_without_a_clear_tokenizer_are_all_named(tmp_path):
    (tmp_path / "none").mkdir()
    broken = folder_of(tmp_path / "broken", bpe())
    (broken / "tokenizer.json").write_text("{")
    twice = folder_of(tmp_path / "twice", bpe())
    (twice / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 1, "a": 2}}}'
    )
    models = {name: tmp_path / name for name in ("none", "broken", "twice")}
    with pytest.raises(CheckpointError) as caught:
        read_vocabularies(models)
    said = str(caught.value)
    assert f"{tmp_path / 'none'} has no tokenizer.json" in said
    assert "copy the tokenizer files of the model it was trained from" in said
    assert f"{broken / 'tokenizer.json'} cannot be read" in said
    assert f"the tokenizer of {twice} gives no clear ids: 'a' stands twice" in said
    assert "id 1 is both 'b' and 'c'" in said


def test_tensors_with_a_vocabulary_axis_are_found_by_name_and_height(tmp_path):
    high = np.zeros((6, 2), np.float32)
    bias = np.zeros(6, np.float32)
    yes = {
        "model.embed_tokens.weight": high,
        "lm_head.weight": high,
        "wte.weight": high,
        "transformer.wte.weight": high,
        "bert.embeddings.word_embeddings.weight": high,
        "cls.predictions.bias": bias,
        "cls.predictions.decoder.weight": high,
        "cls.predictions.decoder.bias": bias,
        "lm_head.decoder.bias": bias,
        "lm_head.bias": bias,
        "shared.weight": high,
        "encoder.embed_tokens.weight": high,
        "gpt_neox.embed_in.weight": high,
        "embed_out.weight": high,
        "decoder.bias": bias,
        "backbone.embeddings.weight": high,
    }
    no = {
        "bert.embeddings.position_embeddings.weight": high,
        "model.layers.0.mlp.shared_expert.up_proj.weight": high,
        "model.layers.0.self_attn.q_proj.weight": high,
        "wpe.weight": high,
        "transformer.word_embeddings_layernorm.weight": bias,
        "model.layers.0.attention.output.weight": high,
        "cls.predictions.transform.dense.weight": high,
        "other.lm_head.weight": np.zeros((5, 2), np.float32),
    }
    save_file({**yes, **no}, tmp_path / "model.safetensors")
    assert vocabulary_tensors(open_checkpoint(tmp_path), 6) == set(yes)


def test_the_chat_template_that_most_models_have_is_taken(tmp_path):
    texts = {"a": "{{ 1 }}", "b": "{{ 2 }}", "c": None, "d": "{{ 2 }}"}
    folders = []
    for name, text in texts.items():
        config = {"chat_template": text} if text else {}
        folders.append(folder_of(tmp_path / name, bpe(), **config))
    (folders[3] / "tokenizer_config.json").write_text("{}")
    (folders[3] / "chat_template.jinja").write_text("{{ 2 }}")
    assert chat_template("auto", folders) == "{{ 2 }}"
    assert chat_template("auto", folders[:2]) == "{{ 1 }}"
    assert chat_template("auto", folders[2:3]) is None
    assert chat_template("{{ 3 }}", folders) == "{{ 3 }}"
    with pytest.raises(CheckpointError, match=r"'alpaca' is neither .*\(chatml\)"):
        chat_template("alpaca", folders)


def test_chatml_is_written_and_renders_its_turns(tmp_path):
    from transformers import AutoTokenizer

    folder = folder_of(tmp_path / "a", bpe())
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    text = chat_template("chatml", [folder])
    assert text is not None
    write_template(folder, text)
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "a\nb"}]
    want = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    render = tokenizer.apply_chat_template
    assert render(turns, tokenize=False) == want
    assert (
        render(turns, tokenize=False, add_generation_prompt=True)
        == want + "<|im_start|>assistant\n"
    )
