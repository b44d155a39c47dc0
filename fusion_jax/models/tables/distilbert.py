"""DistilBERT's names: (Hugging Face module, our module, kind of module)."""

BASE = "distilbert"
ENCODER = (
    ("embeddings.word_embeddings", "encoder/embeddings/word", "embedding"),
    ("embeddings.position_embeddings", "encoder/embeddings/position", "embedding"),
    ("embeddings.LayerNorm", "encoder/embeddings/norm", "norm"),
    (
        "transformer.layer.{i}.attention.q_lin",
        "encoder/layer_{i}/attention/query",
        "linear",
    ),
    (
        "transformer.layer.{i}.attention.k_lin",
        "encoder/layer_{i}/attention/key",
        "linear",
    ),
    (
        "transformer.layer.{i}.attention.v_lin",
        "encoder/layer_{i}/attention/value",
        "linear",
    ),
    (
        "transformer.layer.{i}.attention.out_lin",
        "encoder/layer_{i}/attention/output",
        "linear",
    ),
    ("transformer.layer.{i}.sa_layer_norm", "encoder/layer_{i}/attention/norm", "norm"),
    ("transformer.layer.{i}.ffn.lin1", "encoder/layer_{i}/mlp/up", "linear"),
    ("transformer.layer.{i}.ffn.lin2", "encoder/layer_{i}/mlp/down", "linear"),
    ("transformer.layer.{i}.output_layer_norm", "encoder/layer_{i}/mlp/norm", "norm"),
)
_CLASSIFIER = (
    ("pre_classifier", "head/pre_classifier", "linear"),
    ("classifier", "head/classifier", "linear"),
)
HEADS = {
    "single_label": _CLASSIFIER,
    "multi_label": _CLASSIFIER,
    "token": (("classifier", "head/classifier", "linear"),),
    "span": (("qa_outputs", "head/span", "linear"),),
    "choice": (),
}
ARCHITECTURES = {
    "single_label": "DistilBertForSequenceClassification",
    "multi_label": "DistilBertForSequenceClassification",
    "token": "DistilBertForTokenClassification",
    "span": "DistilBertForQuestionAnswering",
    "choice": "DistilBertModel",
}
IGNORED = (
    r"(distilbert\.)?embeddings\.position_ids",
    r"vocab_(transform|layer_norm|projector)\..*",
)
