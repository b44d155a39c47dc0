"""Random checkpoints to merge: a base and experts around it, in the form of a hub's.

    python scripts/bench/merge_checkpoints.py FOLDER llama [full]

FOLDER gets `base` and `expert_1` .. `expert_4`, each with model.safetensors,
config.json and a word-level tokenizer (t0 t1 t2 ...). Experts are the base plus
0.002 N(0, 1) everywhere. The same arguments give the same bytes; numpy and safetensors
are all it takes. A folder that has its weights is left as it is.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

EXPERTS = 4
STEP = 0.002
WIDTHS = {
    # layers, width, inner of llama, inner of the others, vocabulary (None: the model's)
    "full": (12, 768, 2048, 3072, None),
    "tiny": (2, 64, 128, 256, 512),
}
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def main() -> None:
    """Makes one family."""
    folder, family, *size = sys.argv[1:]
    make(Path(folder), family, *size)


def make(folder: Path, family: str, size: str = "full") -> dict[str, int]:
    """Makes base and experts of a family where they are not there yet.

    Args:
      folder: gets `base` and `expert_1` .. `expert_4`.
      family: of `FAMILIES`.
      size: 'full' (about 0.5 GB a model) or 'tiny'.

    Returns:
      tensors, parameters, and bytes of one weight file.
    """
    shapes_of, config_of, vocabulary = FAMILIES[family]
    layers, width, inner_llama, inner, small = WIDTHS[size]
    words = small or vocabulary
    inner = inner_llama if family == "llama" else inner
    shapes = dict(shapes_of(layers, width, inner, words))
    for number in range(EXPERTS + 1):
        place = folder / (f"expert_{number}" if number else "base")
        if (place / "model.safetensors").is_file():
            continue
        place.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: values(index, number, name, shape)
            for index, (name, shape) in enumerate(shapes.items())
        }
        write_json(place / "config.json", config_of(layers, width, inner, words))
        write_tokenizer(place, words)
        # Last, and by its name only when whole: this file says that all is there.
        partial = place / "model.partial"
        safetensors.numpy.save_file(tensors, str(partial), metadata={"format": "pt"})
        partial.rename(place / "model.safetensors")
    return {
        "tensors": len(shapes),
        "parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
        "bytes": (folder / "base" / "model.safetensors").stat().st_size,
    }


def values(index: int, number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of the base (number 0), or of an expert around it."""
    normal = np.random.default_rng([index]).standard_normal(shape, np.float32)
    found = np.float32(0.02) * normal
    if name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name):
        found += 1
    if number:
        draw = np.random.default_rng([index, number])
        found += np.float32(STEP) * draw.standard_normal(shape, np.float32)
    return found


def llama(layers: int, width: int, inner: int, words: int) -> Shapes:
    """Names and shapes of LlamaForCausalLM, its head apart from its table."""
    yield "model.embed_tokens.weight", (words, width)
    for layer in range(layers):
        place = f"model.layers.{layer}"
        yield f"{place}.input_layernorm.weight", (width,)
        for part in "qkvo":
            yield f"{place}.self_attn.{part}_proj.weight", (width, width)
        yield f"{place}.post_attention_layernorm.weight", (width,)
        yield f"{place}.mlp.gate_proj.weight", (inner, width)
        yield f"{place}.mlp.up_proj.weight", (inner, width)
        yield f"{place}.mlp.down_proj.weight", (width, inner)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (words, width)


def bert(layers: int, width: int, inner: int, words: int) -> Shapes:
    """Names and shapes of BertForSequenceClassification with three labels."""
    for part, rows in (("word", words), ("position", 512), ("token_type", 2)):
        yield f"bert.embeddings.{part}_embeddings.weight", (rows, width)
    yield from norm("bert.embeddings.LayerNorm", width)
    for layer in range(layers):
        place = f"bert.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            yield from dense(f"{place}.attention.self.{part}", width, width)
        yield from dense(f"{place}.attention.output.dense", width, width)
        yield from norm(f"{place}.attention.output.LayerNorm", width)
        yield from dense(f"{place}.intermediate.dense", inner, width)
        yield from dense(f"{place}.output.dense", width, inner)
        yield from norm(f"{place}.output.LayerNorm", width)
    yield from dense("bert.pooler.dense", width, width)
    yield from dense("classifier", 3, width)


def gpt2(layers: int, width: int, inner: int, words: int) -> Shapes:
    """Names and shapes of GPT2ForSequenceClassification: kernels are [in, out]."""
    yield "transformer.wte.weight", (words, width)
    yield "transformer.wpe.weight", (1024, width)
    for layer in range(layers):
        place = f"transformer.h.{layer}"
        yield from norm(f"{place}.ln_1", width)
        yield from turned(f"{place}.attn.c_attn", width, 3 * width)
        yield from turned(f"{place}.attn.c_proj", width, width)
        yield from norm(f"{place}.ln_2", width)
        yield from turned(f"{place}.mlp.c_fc", width, inner)
        yield from turned(f"{place}.mlp.c_proj", inner, width)
    yield from norm("transformer.ln_f", width)
    yield "score.weight", (2, width)


def norm(name: str, width: int) -> Shapes:
    """Weight and bias of a norm."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def dense(name: str, outputs: int, inputs: int) -> Shapes:
    """Kernel [out, in] and bias of a dense layer."""
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def turned(name: str, inputs: int, outputs: int) -> Shapes:
    """Kernel [in, out] and bias of a dense layer of GPT-2."""
    yield f"{name}.weight", (inputs, outputs)
    yield f"{name}.bias", (outputs,)


def llama_config(layers: int, width: int, inner: int, words: int) -> dict[str, Any]:
    """config.json of a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // 64, 4),
        "num_key_value_heads": max(width // 64, 4),
        "vocab_size": words,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def bert_config(layers: int, width: int, inner: int, words: int) -> dict[str, Any]:
    """config.json of a BERT."""
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // 64, 4),
        "vocab_size": words,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        **labelled(3),
        "torch_dtype": "float32",
    }


def gpt2_config(layers: int, width: int, inner: int, words: int) -> dict[str, Any]:
    """config.json of a GPT-2."""
    return {
        "architectures": ["GPT2ForSequenceClassification"],
        "model_type": "gpt2",
        "n_embd": width,
        "n_inner": inner,
        "n_layer": layers,
        "n_head": max(width // 64, 4),
        "n_positions": 1024,
        "vocab_size": words,
        "bos_token_id": words - 1,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
        **labelled(2),
        "torch_dtype": "float32",
    }


def labelled(count: int) -> dict[str, Any]:
    """The labels of a classifier."""
    names = {str(label): f"LABEL_{label}" for label in range(count)}
    return {
        "id2label": names,
        "label2id": {name: int(label) for label, name in names.items()},
    }


FAMILIES: dict[str, tuple[Any, Any, int]] = {
    "llama": (llama, llama_config, 32000),
    "bert": (bert, bert_config, 30522),
    "gpt2": (gpt2, gpt2_config, 50257),
}
"""Family -> (names and shapes, config.json, words), each of (layers, width, ...)."""


def write_tokenizer(place: Path, words: int) -> None:
    """A tokenizer of whole words, t0 to t(words - 2), and the unknown one."""
    vocabulary = {f"t{word}": word for word in range(words - 1)}
    unknown = {
        "id": words - 1,
        "content": "[UNK]",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    write_json(
        place / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [unknown],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": vocabulary | {"[UNK]": words - 1},
                "unk_token": "[UNK]",
            },
        },
    )
    write_json(
        place / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "[UNK]",
            "pad_token": "[UNK]",
            "model_max_length": 512,
        },
    )


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
