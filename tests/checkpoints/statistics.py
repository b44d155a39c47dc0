"""Small models of two linear layers with files of statistics, all real files."""

from dataclasses import replace

import numpy as np

from fusion_jax.checkpoints.lazy import open_checkpoint
from fusion_jax.checkpoints.statistics_file import (
    Layer,
    Manifest,
    stored_gram,
    weights_sha256,
    write_statistics,
)
from fusion_jax.merging.gram_forms import packed
from tests.checkpoints.folders import write_folder

# 'up' lies as PyTorch's linear layers do, 'down' as those of GPT-2.
SHAPES = {
    "embed.weight": (9, 5),
    "up.weight": (7, 5),
    "up.bias": (7,),
    "down.weight": (7, 4),
    "down.bias": (4,),
    "scale": (5,),
}
LAYERS = {
    "up.weight": Layer("in", "up.bias", -1),
    "down.weight": Layer("middle", "down.bias", -2),
}
WIDTHS = {"in": 5, "middle": 7}
OUTPUTS = {"up.weight": 7, "down.weight": 4}


def tensors_of(seed, dtype=np.float32):
    random = np.random.default_rng(seed)
    return {n: random.normal(size=s).astype(dtype) for n, s in SHAPES.items()}


def write_model(folder, seed, *, dtype=np.float32, **more):
    return write_folder(folder, tensors_of(seed, dtype), **more)


def grams_of(seed, tokens=50):
    """Input -> extended Gram of random inputs, float32."""
    random = np.random.default_rng(100 + seed)
    found = {}
    for name, width in WIDTHS.items():
        x = random.normal(size=(tokens, width)) * random.uniform(0.3, 3, width)
        x = np.concatenate([x + random.normal(size=width), np.ones((tokens, 1))], 1)
        found[name] = (x.T @ x / tokens).astype(np.float32)
    return found


def outputs_of(seed):
    random = np.random.default_rng(200 + seed)
    found = {}
    for name, width in OUTPUTS.items():
        g = random.normal(size=(30, width))
        found[name] = (g.T @ g / 30).astype(np.float32)
    return found


def fishers_of(seed, shapes=None):
    random = np.random.default_rng(300 + seed)
    return {
        name: (random.normal(size=shape) ** 2).astype(np.float32)
        for name, shape in (shapes or SHAPES).items()
    }


def manifest_of(folder, kind="gram", **more):
    """What a file of this model's statistics says; `more` replaces fields."""
    said = Manifest(
        kind=kind,
        model=folder.name,
        weights_sha256=weights_sha256(open_checkpoint(folder)),
        data="opinion",
        split="train",
        examples=20,
        max_length=16,
        counts=dict.fromkeys(WIDTHS, 50.0) if kind == "gram" else {},
        layers=LAYERS if kind == "gram" else {},
    )
    return replace(said, **more)


def write_grams(file, folder, seed, *, arrays=None, **more):
    """A file of Grams and output Grams; `arrays` replaces some."""
    held = {}
    for name, gram in grams_of(seed).items():
        held |= stored_gram(name, gram)
    held |= {f"outputs/{name}": packed(x) for name, x in outputs_of(seed).items()}
    write_statistics(file, manifest_of(folder, **more), held | (arrays or {}))
    return file


def write_fishers(file, folder, seed, **more):
    write_statistics(file, manifest_of(folder, "fisher", **more), fishers_of(seed))
    return file
