"""Tiny hosts with weights at random, their batches, and one config for each form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.models import EncoderConfig, build_model
from fusion_jax.peft import PeftConfig

ROWS, LENGTH, WIDTH, INNER, LABELS = 3, 5, 16, 32, 3
TYPES = {"bert": 2, "roberta": 1, "distilbert": 0, "gpt2": 0}

CONFIGS = {
    "lora": PeftConfig(rank=2),
    "rslora": PeftConfig(rank=4, alpha=16, use_rslora=True),
    "dora": PeftConfig(rank=2, use_dora=True),
    "patterns": PeftConfig(
        targets=("query|value", "mlp/up", "embeddings/word"),
        rank=2,
        rank_pattern=(("mlp/up", 3), ("layer_1/attention/.*", 1)),
        alpha_pattern=(("encoder/layer_0/.*", 5.0),),
    ),
    "ia3": PeftConfig(kind="ia3"),
    "houlsby": PeftConfig(kind="adapter", reduction_factor=4, init="zero_up"),
    "houlsby_1e-3": PeftConfig(kind="adapter", bottleneck=4),
    "pfeiffer": PeftConfig(kind="adapter", place="pfeiffer", bottleneck=4),
    "parallel": PeftConfig(kind="adapter", place="parallel"),
    "compacter": PeftConfig(kind="compacter", bottleneck=4, phm_dim=2),
    "compacter_zero": PeftConfig(
        kind="compacter", bottleneck=8, place="pfeiffer", init="zero_up"
    ),
    "prefix": PeftConfig(kind="prefix", length=3),
    "prefix_mlp": PeftConfig(kind="prefix", length=3, mlp_width=6),
    "prompt": PeftConfig(kind="prompt", length=3),
    "bitfit": PeftConfig(kind="bitfit"),
    "lora_and_norms": PeftConfig(rank=2, train_norms=True, replaces=("head/.*",)),
}
# GPT-2 has norms before its blocks, and query, key and value in one product.
FOR_DECODERS = ("dora", "ia3", "pfeiffer", "parallel", "prompt")


@functools.cache
def model_of(family="bert", kind="single_label", **options):
    config = EncoderConfig(
        family, 40, WIDTH, 2, 2, INNER, 20, TYPES[family], pad_token_id=1
    )
    return build_model(config, kind, LABELS, **options)


@functools.cache
def host_of(family="bert", kind="single_label"):
    """Weights of another size for every leaf, so that no two layers are alike."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model_of(family, kind).init, jax.random.key(0))
    return jax.tree.map(
        lambda x: jnp.asarray(generator.normal(0, 0.4, x.shape), jnp.float32), shapes
    )


def batch_of(seed=0, rows=ROWS, length=LENGTH):
    generator = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int32)
    mask[-1, length - 2 :] = 0
    ids = generator.integers(2, 40, (rows, length), dtype=np.int32)
    return {
        "input_ids": np.where(mask, ids, 1),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, (rows, length), dtype=np.int32),
        "label": generator.integers(0, LABELS, rows, dtype=np.int32),
        "mask": np.ones(rows, np.float32),
    }


def moved(module, seed=1, size=0.2):
    """The module with every leaf moved at random, as if it had been trained."""
    generator = np.random.default_rng(seed)
    params = {
        name: np.asarray(x) + generator.normal(0, size, x.shape).astype(x.dtype)
        for name, x in trees.flatten(module.params).items()
    }
    return module._replace(params=trees.unflatten(params))


@functools.cache
def _program(model):
    return jax.jit(model.apply)


def logits(model, params, batch=None, **options):
    run = _program(model) if not options else model.apply
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params, batch or batch_of(), **options)["logits"])
