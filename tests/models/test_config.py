import dataclasses

import pytest

from fusion_jax.models.config import FAMILIES, EncoderConfig

BERT = {
    "model_type": "bert",
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 30,
    "dim": 8,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 16,
    "max_position_embeddings": 20,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_reads_back_as_the_same_config(family):
    config = EncoderConfig(family, 30, 8, 2, 2, 16, 20, classifier_dropout=0.3)
    if family == "distilbert":
        config = dataclasses.replace(config, type_vocab_size=0)
    assert EncoderConfig.from_hf(config.to_hf()) == config


def test_absent_keys_take_the_family_defaults():
    bert = EncoderConfig.from_hf(BERT)
    assert (bert.type_vocab_size, bert.pad_token_id, bert.head_dropout) == (2, 0, 0.1)
    roberta = EncoderConfig.from_hf(BERT | {"model_type": "roberta"})
    assert roberta.pad_token_id == 1
    distilbert = EncoderConfig.from_hf(DISTILBERT)
    assert (distilbert.type_vocab_size, distilbert.head_dropout) == (0, 0.2)


def test_every_missing_and_unsupported_key_is_named_at_once():
    values = BERT | {"position_embedding_type": "relative_key", "hidden_act": "mish"}
    del values["vocab_size"], values["intermediate_size"]
    with pytest.raises(ValueError) as caught:
        EncoderConfig.from_hf(values, source="some/config.json")
    for word in (
        "some/config.json",
        "'vocab_size' is missing",
        "'intermediate_size' is missing",
        "relative_key",
        "mish",
        "gelu",
    ):
        assert word in str(caught.value)


def test_another_family_is_refused_with_the_supported_ones():
    with pytest.raises(ValueError, match=r"'t5'.*bert, roberta, distilbert, gpt2"):
        EncoderConfig.from_hf({"model_type": "t5"})


def test_hidden_size_must_divide_by_heads():
    with pytest.raises(ValueError, match="8 is no multiple of 3 heads"):
        EncoderConfig.from_hf(BERT | {"num_attention_heads": 3})


def test_decoders_are_refused():
    with pytest.raises(ValueError, match="is_decoder"):
        EncoderConfig.from_hf(BERT | {"is_decoder": True})
