"""GPT-2's names: (Hugging Face module, our module, what kind of module it is)."""

BASE = "transformer"
ENCODER = (
    ("wte", "encoder/embeddings/word", "embedding"),
    ("wpe", "encoder/embeddings/position", "embedding"),
    ("h.{i}.ln_1", "encoder/layer_{i}/attention/norm", "norm"),
    ("h.{i}.attn.c_attn", "encoder/layer_{i}/attention/qkv", "conv1d"),
    ("h.{i}.attn.c_proj", "encoder/layer_{i}/attention/output", "conv1d"),
    ("h.{i}.ln_2", "encoder/layer_{i}/mlp/norm", "norm"),
    ("h.{i}.mlp.c_fc", "encoder/layer_{i}/mlp/up", "conv1d"),
    ("h.{i}.mlp.c_proj", "encoder/layer_{i}/mlp/down", "conv1d"),
    ("ln_f", "encoder/final_norm", "norm"),
)
_CLASSIFIER = (("score", "head/classifier", "linear_without_bias"),)
HEADS = {
    "single_label": _CLASSIFIER,
    "multi_label": _CLASSIFIER,
    "choice": (),
}
ARCHITECTURES = {
    "single_label": "GPT2ForSequenceClassification",
    "multi_label": "GPT2ForSequenceClassification",
    # The bare decoder; there is no choice head for it.
    "choice": "GPT2Model",
}
IGNORED = (
    r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
    r"lm_head\.weight",
)
