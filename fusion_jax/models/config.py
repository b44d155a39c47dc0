"""The shape of an encoder or decoder, as a Hugging Face config.json has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from fusion_jax.models.activations import ACTIVATIONS

Family = Literal["bert", "roberta", "distilbert", "gpt2"]
# Every token of an encoder sees all others, of a decoder only those before it.
FAMILIES: tuple[Family, ...] = ("bert", "roberta", "distilbert")
DECODERS: tuple[Family, ...] = ("gpt2",)

# (our field, key of config.json); a key that may be absent stands in _DEFAULTS.
_BERT_KEYS = (
    ("vocab_size", "vocab_size"),
    ("hidden_size", "hidden_size"),
    ("num_layers", "num_hidden_layers"),
    ("num_heads", "num_attention_heads"),
    ("intermediate_size", "intermediate_size"),
    ("max_positions", "max_position_embeddings"),
    ("type_vocab_size", "type_vocab_size"),
    ("layer_norm_eps", "layer_norm_eps"),
    ("activation", "hidden_act"),
    ("pad_token_id", "pad_token_id"),
    ("hidden_dropout", "hidden_dropout_prob"),
    ("attention_dropout", "attention_probs_dropout_prob"),
    ("classifier_dropout", "classifier_dropout"),
)
_DISTILBERT_KEYS = (
    ("vocab_size", "vocab_size"),
    ("hidden_size", "dim"),
    ("num_layers", "n_layers"),
    ("num_heads", "n_heads"),
    ("intermediate_size", "hidden_dim"),
    ("max_positions", "max_position_embeddings"),
    ("activation", "activation"),
    ("pad_token_id", "pad_token_id"),
    ("hidden_dropout", "dropout"),
    ("attention_dropout", "attention_dropout"),
    ("classifier_dropout", "seq_classif_dropout"),
)
_GPT2_KEYS = (
    ("vocab_size", "vocab_size"),
    ("hidden_size", "n_embd"),
    ("num_layers", "n_layer"),
    ("num_heads", "n_head"),
    ("intermediate_size", "n_inner"),
    ("max_positions", "n_positions"),
    ("layer_norm_eps", "layer_norm_epsilon"),
    ("activation", "activation_function"),
    ("pad_token_id", "pad_token_id"),
    ("hidden_dropout", "resid_pdrop"),
    ("attention_dropout", "attn_pdrop"),
    ("embedding_dropout", "embd_pdrop"),
)
CONFIG_KEYS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "bert": _BERT_KEYS,
    "roberta": _BERT_KEYS,
    "distilbert": _DISTILBERT_KEYS,
    "gpt2": _GPT2_KEYS,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "bert": {
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
    },
    "roberta": {
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 1,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
    },
    "distilbert": {
        "activation": "gelu",
        "pad_token_id": 0,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
    },
    "gpt2": {
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
    },
}
# A value other than these changes the computation in a way these models have not.
_REQUIRED_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("position_embedding_type", (None, "absolute")),
    ("is_decoder", (None, False)),
    ("add_cross_attention", (None, False)),
    ("is_encoder_decoder", (None, False)),
    ("scale_attn_weights", (None, True)),
    ("scale_attn_by_inverse_layer_idx", (None, False)),
    ("reorder_and_upcast_attn", (None, False)),
)


NO_PADDING_ID = -1
"""`pad_token_id` of a decoder whose config.json has null there."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes, activation and dropout rates of a BERT-like encoder or a GPT-2 decoder.

    `classifier_dropout` and `embedding_dropout` None mean `hidden_dropout`. DistilBERT
    and GPT-2 have no token types: their `type_vocab_size` is 0.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    pad_token_id: int = 0
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    embedding_dropout: float | None = None

    @property
    def input_dropout(self) -> float:
        """The rate after a decoder's embeddings."""
        if self.embedding_dropout is None:
            return self.hidden_dropout
        return self.embedding_dropout

    @property
    def head_dropout(self) -> float:
        """The rate before a classifier."""
        if self.classifier_dropout is None:
            return self.hidden_dropout
        return self.classifier_dropout

    @staticmethod
    def from_hf(
        values: Mapping[str, Any], *, source: str = "config"
    ) -> "EncoderConfig":
        """Reads the content of a Hugging Face config.json.

        Args:
          values: the parsed file.
          source: what to call it in an error.

        Returns:
          The config.

        Raises:
          ValueError: a key is missing or a value not supported; all are listed.
        """
        family = values.get("model_type")
        supported = (*FAMILIES, *DECODERS)
        if family not in supported:
            raise ValueError(
                f"{source}: model_type {family!r} is not supported; "
                f"supported are {', '.join(supported)}"
            )
        problems = []
        fields: dict[str, Any] = {}
        for field, key in CONFIG_KEYS[family]:
            value = values.get(key, _DEFAULTS[family].get(key))
            if value is None and family == "gpt2":
                value = _gpt2_value(field, values)
            if value is None and field != "classifier_dropout":
                problems.append(f"{key!r} is missing")
            fields[field] = value
        fields.setdefault("type_vocab_size", 0)
        for key, allowed in _REQUIRED_VALUES:
            if values.get(key) not in allowed:
                problems.append(
                    f"{key!r} is {values[key]!r}; only {allowed[-1]!r} is supported"
                )
        if fields["activation"] not in ACTIVATIONS:
            problems.append(
                f"activation {fields['activation']!r} is not one of "
                f"{', '.join(sorted(ACTIVATIONS))}"
            )
        hidden, heads = fields["hidden_size"], fields["num_heads"]
        if hidden and heads and hidden % heads:
            problems.append(f"hidden size {hidden} is no multiple of {heads} heads")
        if problems:
            raise ValueError(f"{source} ({family}): " + "; ".join(problems))
        return EncoderConfig(family=cast(Family, family), **fields)

    def to_hf(self) -> dict[str, Any]:
        """The config.json content that `from_hf` reads back as this config."""
        values: dict[str, Any] = {"model_type": self.family}
        for field, key in CONFIG_KEYS[self.family]:
            values[key] = getattr(self, field)
        if self.family == "distilbert":
            values["seq_classif_dropout"] = self.head_dropout
            values["sinusoidal_pos_embds"] = False
        if self.family == "gpt2":
            values["embd_pdrop"] = self.input_dropout
            if self.pad_token_id == NO_PADDING_ID:
                values["pad_token_id"] = None
        return values


def _gpt2_value(field: str, values: Mapping[str, Any]) -> int | None:
    """What a null in GPT-2's config.json stands for; None where it is a fault."""
    if field == "pad_token_id":
        return NO_PADDING_ID
    if field == "intermediate_size":
        return 4 * (values.get("n_embd") or 0)
    return None
