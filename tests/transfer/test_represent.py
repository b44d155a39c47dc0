"""What measures read of tasks: vectors of texts kept on disk, and all measures."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.models import build_model
from fusion_jax.transfer.corpora import read_corpora
from fusion_jax.transfer.pairs import all_pairs
from fusion_jax.transfer.represent import represent
from fusion_jax.transfer.states import text_states
from fusion_jax.transfer.study import measure_all, measures_of
from fusion_jax.transfer.table import MEASURES
from tests import small_models
from tests.transfer.test_corpora import task, texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_models.write_model(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="module")
def encoder(folder):
    return hf.load(folder)


@pytest.fixture(scope="module")
def corpora(folder):
    tasks = [task("a", texts(0, 20)), task("b", texts(8, 20)), task("c", texts(25, 15))]
    return read_corpora(tasks, load_tokenizer(folder))


@pytest.fixture(scope="module")
def represented(corpora, encoder):
    return represent(corpora, encoder)


def by_hand(corpus, encoder):
    """[layers + 1, n, D]: one text at a time, without padding."""
    model = build_model(encoder.config, "single_label", 2, every_token=True)
    params = model.init(jax.random.key(0)) | {"encoder": encoder.params["encoder"]}
    found = []
    for ids in corpus.inputs.columns["input_ids"]:
        batch = {
            "input_ids": ids[None],
            "token_type_ids": np.zeros_like(ids)[None],
            "attention_mask": np.ones_like(ids)[None],
        }
        carry, states = None, []
        for stage in model.stages[:-1]:
            carry = stage.apply(params, carry, batch)
            states.append(np.asarray(carry, np.float64)[0].mean(axis=0))
        found.append(states)
    return np.array(found).swapaxes(0, 1)


@pytest.mark.parametrize("layers", ["last", "all", 0, -2])
def test_states_are_the_mean_over_tokens_whatever_the_batches(corpora, encoder, layers):
    expected = by_hand(corpora.kept[0], encoder)[1:]
    expected = {"last": expected[-1], "all": expected.mean(axis=0)}.get(
        layers, expected[layers if isinstance(layers, int) else 0]
    )
    for tokens in (64, 4096):
        states, there = text_states(
            corpora.kept[0].inputs, encoder, layers=layers, tokens_per_batch=tokens
        )
        assert not there
        np.testing.assert_allclose(states, expected, atol=2e-6)


def test_states_are_kept_and_read_again(corpora, encoder, tmp_path):
    inputs = corpora.kept[0].inputs
    fresh, there = text_states(inputs, encoder, cache=tmp_path)
    again, found = text_states(inputs, encoder, cache=tmp_path)
    assert (there, found) == (False, True)
    np.testing.assert_array_equal(fresh, again)
    assert len(list(tmp_path.iterdir())) == 1
    # Whatever decides them names another file.
    other = encoder._replace(sha256="0" * 64)
    assert not text_states(inputs, other, cache=tmp_path)[1]
    assert not text_states(inputs, encoder, layers=0, cache=tmp_path)[1]
    fewer = inputs.take(np.arange(5))
    assert not text_states(fewer, encoder, cache=tmp_path)[1]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_or_foreign_file_is_refused_by_name(corpora, encoder, tmp_path):
    one, two = (corpus.inputs for corpus in corpora.kept[:2])
    text_states(one, encoder, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    text_states(two, encoder, cache=tmp_path)
    (other,) = set(tmp_path.iterdir()) - {file}
    for content, reason in (
        (whole[:-7], "truncated"),
        (bytes(flipped), "other texts or layers|damaged"),
        (other.read_bytes(), "other texts or layers"),
        (b"states", "truncated or no safetensors"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=reason) as told:
            text_states(one, encoder, cache=tmp_path)
        assert file.name in str(told.value)


def test_an_unknown_layer_is_refused(corpora, encoder):
    with pytest.raises(ValueError, match="layers: 7; give 'last', 'all', or a number"):
        text_states(corpora.kept[0].inputs, encoder, layers=7)


def test_reads_are_those_of_all_tasks(represented, corpora):
    assert represented.names == ("a", "b", "c")
    n = corpora.texts
    assert represented.reads["sample"].shape == (3, n, 16)
    assert represented.reads["moments"].covariance.shape == (3, 16, 16)
    counts = represented.reads["terms"]
    np.testing.assert_allclose(counts.sum(axis=1), 1)
    assert represented.reads["presence"].shape == counts.shape
    assert set(represented.seconds) == {"a", "b", "c"}
    assert min(represented.seconds.values()) > 0


def test_without_an_encoder_terms_alone_are_compared(corpora):
    terms = represent(corpora)
    assert set(terms.reads) == {"terms", "presence", "tfidf"}
    assert "mmd" not in measures_of(terms) and "kl" in measures_of(terms)
    with pytest.raises(ValueError, match="mmd reads 'sample', coral reads 'moments'"):
        measure_all(terms, ["mmd", "coral"])
    with pytest.raises(ValueError, match="unknown jsd; there are kl"):
        measure_all(terms, ["jsd"])


def test_all_measures_of_all_pairs_are_those_of_each_alone(represented):
    study = measure_all(represented)
    assert set(study.distances) == set(measures_of(represented))
    assert set(study.seconds) == set(study.distances)
    for name, table in study.distances.items():
        assert table.shape == (3, 3) and np.isfinite(table).all(), name
    np.testing.assert_array_equal(
        study.distances["kl"], all_pairs("kl", represented.reads["terms"])
    )
    assert all(MEASURES[name].symmetric == np.array_equal(t, t.T)
               for name, t in study.distances.items())  # fmt: skip


def test_a_task_whose_vectors_are_not_finite_is_left_out_and_not_kept(
    folder, encoder, tmp_path
):
    # The word 'ada' has a row of NaN; one task alone has it.
    broken = trees.map_with_names(
        lambda name, x: (
            x.at[small_models.VOCABULARY.index("ada")].set(jnp.nan)
            if name.endswith("word/embedding")
            else x
        ),
        encoder.params,
    )
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(broken)), (
        "no leaf was broken"
    )
    plain = [t.replace("ada", "bo") for t in texts(0, 30)]
    tasks = [task("a", plain), task("b", texts(0, 18)), task("c", plain[::-1])]
    corpora = read_corpora(tasks, load_tokenizer(folder))
    found = represent(corpora, encoder._replace(params=broken), cache=tmp_path)
    assert found.names == ("a", "c")
    assert "vectors are not finite" in found.left_out["b"]
    assert len(found.reads["terms"]) == len(found.reads["sample"]) == 2
    assert found.cached == ("c",)  # the same texts as of a
    assert len(list(tmp_path.iterdir())) == 1
    shutil.rmtree(tmp_path)
