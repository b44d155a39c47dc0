"""The shape of an encoder, read from and written to a Hugging Face config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from fusion_jax.models.activations import ACTIVATIONS

Family = Literal["bert", "roberta", "distilbert"]
FAMILIES: tuple[Family, ...] = ("bert", "roberta", "distilbert")

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
CONFIG_KEYS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "bert": _BERT_KEYS,
    "roberta": _BERT_KEYS,
    "distilbert": _DISTILBERT_KEYS,
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
}
# A value other than these changes the computation in a way this encoder has not.
_REQUIRED_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("position_embedding_type", (None, "absolute")),
    ("is_decoder", (None, False)),
    ("add_cross_attention", (None, False)),
    ("is_encoder_decoder", (None, False)),
)


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes, activation and dropout rates of a BERT-like encoder.

    `classifier_dropout` None means `hidden_dropout`. DistilBERT has no token types:
    its `type_vocab_size` is 0.
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
        if family not in FAMILIES:
            raise ValueError(
                f"{source}: model_type {family!r} is not supported; "
                f"supported are {', '.join(FAMILIES)}"
            )
        problems = []
        fields: dict[str, Any] = {}
        for field, key in CONFIG_KEYS[family]:
            value = values.get(key, _DEFAULTS[family].get(key))
            if value is None and field != "classifier_dropout":
                problems.append(f"{key!r} is missing")
            fields[field] = value
        if family == "distilbert":
            fields["type_vocab_size"] = 0
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
        return values
