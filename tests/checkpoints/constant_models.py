"""Tiny decoders of constant weights, and pieces of mergekit files about them."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fusion_jax.checkpoints.plan import MergePlan
from fusion_jax.checkpoints.tensors import write_file

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
QUERY, OUT, DOWN = "self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"
WIDTH, BLOCKS = 8, 4


def blocks(inner: str, *values: float) -> dict[str, float]:
    return {f"model.layers.{i}.{inner}.weight": v for i, v in enumerate(values)}


def make_model(
    folder: Path,
    value: float,
    *,
    height: int = 6,
    dtype: Any = np.float32,
    tied: bool = False,
    rows: list[int] | None = None,
) -> None:
    """A decoder in the layout of Llama whose tensors are all one value."""
    matrices = {EMBED: height, **({} if tied else {HEAD: height})}
    for i in range(BLOCKS):
        for inner in ("q", "k", "v", "o"):
            matrices[f"model.layers.{i}.self_attn.{inner}_proj.weight"] = WIDTH
        for inner in ("gate", "up", "down"):
            matrices[f"model.layers.{i}.mlp.{inner}_proj.weight"] = WIDTH
    tensors = {
        name: np.full((rows_, WIDTH), value, dtype) for name, rows_ in matrices.items()
    }
    vectors = [NORM]
    for i in range(BLOCKS):
        vectors += [
            f"model.layers.{i}.{inner}.weight"
            for inner in ("input_layernorm", "post_attention_layernorm")
        ]
    tensors |= {name: np.full(WIDTH, value, dtype) for name in vectors}
    if rows is not None:
        tensors[EMBED] = np.repeat(np.array(rows, dtype)[:, None], WIDTH, axis=1)
        tensors[HEAD] = tensors[EMBED].copy()
    folder.mkdir()
    write_file(folder / "model.safetensors", tensors)
    config = {
        "model_type": "llama",
        "vocab_size": height,
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "tie_word_embeddings": tied,
        "torch_dtype": np.dtype(dtype).name,
    }
    (folder / "config.json").write_text(json.dumps(config))


def make_models(root: Path) -> Path:
    """The models that the tests' files name."""
    make_model(root / "base", 0)
    make_model(root / "a", 1)
    make_model(root / "b", 10)
    make_model(root / "half", 1, dtype=ml_dtypes.bfloat16)
    make_model(root / "tied_a", 1, tied=True)
    make_model(root / "tied_b", 3, tied=True)
    make_model(root / "wide", 1, height=8)
    make_model(root / "t1", 1, height=4, rows=[1, 2, 3, 4])
    make_model(root / "t2", 1, height=5, rows=[100, 200, 300, 400, 500])
    return root


CONSTANTS = {"base": 0, "a": 1, "b": 10, "half": 1, "tied_a": 1, "tied_b": 3}


def effective(plan: MergePlan) -> dict[str, float]:
    """Sum of coefficient times the constant of the model: enough for linear merges."""
    return {
        t.name: sum(
            c * CONSTANTS[s.model]
            for c, s in zip(t.coefficients, t.sources, strict=True)
        )
        for t in plan.tensors
    }


TA = "merge_method: task_arithmetic\nbase_model: base\n"
LINEAR = "merge_method: linear\n"


def ta_a(weight: str, more: str = "") -> str:
    return f"{TA}models: [{{model: a, parameters: {{weight: {weight}}}}}]\n{more}"


TWO = "models: [{model: a}, {model: b}]\n"
WEIGHTS = (
    "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]"
)
