"""From rows of text to scores, through the real encoder, for every kind of task."""

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fusion_jax.data.batches import bucket_lengths, eval_batches
from fusion_jax.data.task import Task
from fusion_jax.data.tokenise import encode
from fusion_jax.evaluation.metrics import DEFAULT_METRICS
from fusion_jax.evaluation.objectives import OBJECTIVES
from fusion_jax.evaluation.readout import collect, make_reader, read, readout
from fusion_jax.evaluation.scoring import score, score_many
from fusion_jax.models.build import build_model
from fusion_jax.models.config import EncoderConfig

WORDS = "who met ross and rachel at the coffee house last week or maybe joey".split()


@pytest.fixture(scope="module")
def tokenizer():
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )


def task_of(kind):
    """A dev set of 11 rows."""
    rows = []
    for n in range(11):
        words = [WORDS[(3 * n + i) % len(WORDS)] for i in range(3 + 2 * n)]
        row = {"text": " ".join(words)}
        if kind == "single_label":
            row["target"] = n % 3
        elif kind == "multi_label":
            row["target"] = tuple(c for c in range(3) if (n >> c) & 1)
        elif kind == "choice":
            row |= {"choices": ("ross", "rachel", "joey"), "target": n % 3}
        elif kind == "token":
            row |= {
                "tokens": tuple(words),
                "target": tuple((n + i) % 3 for i in range(len(words))),
            }
        else:
            row |= {
                "context": " ".join(words),
                "text": "who met ross",
                "target": ({"text": words[1], "start": len(words[0]) + 1},),
            }
        rows.append(row)
    labels = {"token": ("O", "B-x", "I-x")}.get(kind, ("x", "y", "z"))
    labels = () if kind in ("span", "choice") else labels
    return Task("toy", kind, labels, (), {"dev": tuple(rows)})


@pytest.fixture(scope="module")
def config():
    return EncoderConfig(
        family="bert",
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_positions=32,
    )


@pytest.mark.parametrize(
    "kind", ["single_label", "multi_label", "choice", "token", "span"]
)
def test_scores_do_not_depend_on_batches_and_populations(kind, tokenizer, config):
    task = task_of(kind)
    encoded = encode(task, "dev", tokenizer, 24)
    model = build_model(config, kind, max(task.num_labels, 2))
    metrics = DEFAULT_METRICS[kind]
    small, large = (
        eval_batches(encoded, tokens_per_batch=size, buckets=buckets)
        for size, buckets in ((50, bucket_lengths(24)), (4096, (24,)))
    )
    stack = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 3))
    # Larger weights than a fresh model's, so that predictions differ.
    stack = jax.tree.map(lambda x: 30.0 * np.asarray(x), stack)

    @jax.jit
    def population(stack, batch):
        def one(params):
            return readout(kind, model.apply(params, batch), batch)

        return jax.vmap(one)(stack)

    pieces = [(batch["index"], population(stack, batch)) for batch in large]
    many = collect(pieces, len(encoded), leading=1)
    scores = score_many(many, encoded, metrics)
    fitness = OBJECTIVES["metric_calibrated"](many, encoded, metrics)
    reader = make_reader(model.apply, kind)
    for p in range(3):
        params = jax.tree.map(lambda x, p=p: x[p], stack)
        one = score(read(reader, params, small, len(encoded)), encoded, metrics)
        assert one.mean == pytest.approx(scores.mean[p], abs=1e-9)
        assert one.loss == pytest.approx(scores.loss[p], rel=1e-4)
        assert fitness[p] == pytest.approx(-one.mean, abs=1e-7)
        assert len(one.stats[0]) == 11
        assert np.isfinite(one.calibrated_loss)
        assert one.calibrated_loss <= one.loss * (1 + 1e-6)
