"""BERT's names: (Hugging Face module, our module, what kind of module it is)."""

BASE = "bert"
ENCODER = (
    ("embeddings.word_embeddings", "encoder/embeddings/word", "embedding"),
    ("embeddings.position_embeddings", "encoder/embeddings/position", "embedding"),
    ("embeddings.token_type_embeddings", "encoder/embeddings/token_type", "embedding"),
    ("embeddings.LayerNorm", "encoder/embeddings/norm", "norm"),
    (
        "encoder.layer.{i}.attention.self.query",
        "encoder/layer_{i}/attention/query",
        "linear",
    ),
    (
        "encoder.layer.{i}.attention.self.key",
        "encoder/layer_{i}/attention/key",
        "linear",
    ),
    (
        "encoder.layer.{i}.attention.self.value",
        "encoder/layer_{i}/attention/value",
        "linear",
    ),
    (
        "encoder.layer.{i}.attention.output.dense",
        "encoder/layer_{i}/attention/output",
        "linear",
    ),
    (
        "encoder.layer.{i}.attention.output.LayerNorm",
        "encoder/layer_{i}/attention/norm",
        "norm",
    ),
    ("encoder.layer.{i}.intermediate.dense", "encoder/layer_{i}/mlp/up", "linear"),
    ("encoder.layer.{i}.output.dense", "encoder/layer_{i}/mlp/down", "linear"),
    ("encoder.layer.{i}.output.LayerNorm", "encoder/layer_{i}/mlp/norm", "norm"),
    ("pooler.dense", "encoder/pooler", "linear"),
)
_CLASSIFIER = (("classifier", "head/classifier", "linear"),)
HEADS = {
    "single_label": _CLASSIFIER,
    "multi_label": _CLASSIFIER,
    "token": _CLASSIFIER,
    "span": (("qa_outputs", "head/span", "linear"),),
    "choice": (),
}
ARCHITECTURES = {
    "single_label": "BertForSequenceClassification",
    "multi_label": "BertForSequenceClassification",
    "token": "BertForTokenClassification",
    "span": "BertForQuestionAnswering",
    "choice": "BertModel",
}
IGNORED = (
    r"(bert\.)?embeddings\.position_ids",
    r"cls\..*",
)
