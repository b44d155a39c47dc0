"""A small model without Linen, hand-made splits and tree comparison."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.data.encoded import Encoded
from fusion_jax.trees import flatten
from fusion_jax.types import Model

VOCABULARY, WIDTH, CLASSES = 24, 8, 3


def small_init(key):
    table, up, head = jax.random.split(key, 3)
    return {
        "encoder": {
            "embeddings": {
                "word": {
                    "embedding": jax.random.normal(table, (VOCABULARY, WIDTH)) * 0.5
                }
            },
            "layer_0": {
                "mlp": {
                    "up": {
                        "kernel": jax.random.normal(up, (WIDTH, WIDTH)) * 0.4,
                        "bias": jnp.zeros(WIDTH),
                    }
                }
            },
        },
        "head": {
            "classifier": {
                "kernel": jax.random.normal(head, (WIDTH, CLASSES)) * 0.1,
                "bias": jnp.zeros(CLASSES),
            }
        },
    }


def small_apply(params, batch, *, dropout_key=None):
    """Mean of word vectors, one layer, one head."""
    encoder = params["encoder"]
    words = jnp.take(
        encoder["embeddings"]["word"]["embedding"], batch["input_ids"], axis=0
    )
    mask = batch["attention_mask"][..., None].astype(words.dtype)
    x = (words * mask).sum(1) / mask.sum(1)
    up = encoder["layer_0"]["mlp"]["up"]
    x = jnp.tanh(x @ up["kernel"] + up["bias"])
    if dropout_key is not None:
        keep = jax.random.bernoulli(dropout_key, 0.8, x.shape)
        x = jnp.where(keep, x / 0.8, 0)
    head = params["head"]["classifier"]
    return {"logits": x @ head["kernel"] + head["bias"]}


MODEL = Model(init=small_init, apply=small_apply, stages=())


def make_split(rows, seed, classes=CLASSES):
    """Rows of 3 to 14 words; the words of a class are likelier in its rows."""
    generator = np.random.Generator(np.random.PCG64(seed))
    lengths = generator.integers(3, 15, rows)
    labels = generator.integers(0, classes, rows).astype(np.int32)
    words = [
        np.where(
            generator.random(length) < 0.5,
            2 + 4 * label + generator.integers(0, 4, length),
            generator.integers(2, VOCABULARY, length),
        ).astype(np.int32)
        for length, label in zip(lengths, labels, strict=True)
    ]
    return Encoded(
        task_name=f"toy_{seed}",
        kind="single_label",
        num_labels=classes,
        columns={
            "input_ids": words,
            "token_type_ids": [np.zeros(n, np.int32) for n in lengths],
        },
        targets={"label": labels},
        lengths=lengths,
        items=np.arange(rows),
        references=[int(label) for label in labels],
        labels=tuple(f"label_{c}" for c in range(classes)),
    )


@pytest.fixture
def model():
    """The small model."""
    return MODEL


@pytest.fixture
def params():
    """Its parameters."""
    return small_init(jax.random.key(0))


@pytest.fixture
def splits():
    """Builds a split: (rows, seed) -> Encoded."""
    return make_split


@pytest.fixture
def largest_difference():
    """Largest absolute difference of two trees with the same leaves."""

    def compare(left, right):
        left, right = flatten(left), flatten(right)
        assert left.keys() == right.keys()
        return max(
            float(np.abs(np.asarray(left[n]) - np.asarray(right[n])).max())
            for n in left
        )

    return compare
