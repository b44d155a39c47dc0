"""RoBERTa's names: the encoder is BERT's, the heads are its own."""

from fusion_jax.models.tables import bert

BASE = "roberta"
ENCODER = bert.ENCODER
_CLASSIFIER = (
    ("classifier.dense", "head/dense", "linear"),
    ("classifier.out_proj", "head/classifier", "linear"),
)
HEADS = bert.HEADS | {"single_label": _CLASSIFIER, "multi_label": _CLASSIFIER}
ARCHITECTURES = {
    "single_label": "RobertaForSequenceClassification",
    "multi_label": "RobertaForSequenceClassification",
    "token": "RobertaForTokenClassification",
    "span": "RobertaForQuestionAnswering",
    "choice": "RobertaModel",
}
IGNORED = (
    r"(roberta\.)?embeddings\.(position_ids|token_type_ids)",
    r"lm_head\..*",
)
