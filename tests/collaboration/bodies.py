"""Bodies of tiny models as safetensors files, with bases and manifests beside them."""

from dataclasses import replace

import numpy as np

from fusion_jax.checkpoints.manifests import (
    BaseManifest,
    BaseReference,
    ContributionManifest,
    Part,
    TensorFile,
)
from fusion_jax.checkpoints.object_files import file_sha256, table
from fusion_jax.checkpoints.tensors import write_file
from fusion_jax.collaboration.fusing import Member
from fusion_jax.collaboration.screening import Candidate
from fusion_jax.collaboration.weights_file import open_weights

SHAPES = {
    "embeddings.weight": (12, 8),
    "encoder.layer.0.query.weight": (8, 8),
    "encoder.layer.0.query.bias": (8,),
    "encoder.layer.1.query.weight": (8, 8),
    "encoder.layer.1.query.bias": (8,),
    "norm.weight": (8,),
}
IDS = np.arange(6, dtype=np.int64)[None]


def base_tensors(seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    floating = {n: random.normal(size=s).astype(dtype) for n, s in SHAPES.items()}
    return {**floating, "embeddings.position_ids": IDS}


def tuned(base, seed, size=0.03):
    """A base with a random way of `size` of its norm in each tensor."""
    random = np.random.default_rng(1000 + seed)
    found = {}
    for name, values in base.items():
        found[name] = values
        if values.dtype.kind != "i":
            wide = values.astype(np.float64)
            way = random.normal(size=values.shape)
            way *= size * np.linalg.norm(wide) / np.linalg.norm(way)
            found[name] = (wide + way).astype(values.dtype)
    return found


def scaled(base, tensors, factor):
    """base + factor (tensors - base)."""
    return {
        name: values
        if values.dtype.kind == "i"
        else (
            base[name].astype(np.float64)
            + factor * (values.astype(np.float64) - base[name].astype(np.float64))
        ).astype(values.dtype)
        for name, values in tensors.items()
    }


def save(file, tensors):
    write_file(file, tensors)
    return file


def tensor_file(file, name=None):
    """What a manifest says of a file."""
    return TensorFile(
        name or f"contributions/{file.name}",
        file_sha256(file),
        file.stat().st_size,
        table(open_weights(file).tensors),
    )


def base_manifest(round_, file, parts=()):
    return BaseManifest(round_, tensor_file(file, f"bases/{file.name}"), parts=parts)


def part(sha256):
    return Part("m", "0" * 64, "someone", "task", sha256, 0, 1.0)


def contribution(file, base, **more):
    """A manifest that tells the truth; `more` replaces fields."""
    said = ContributionManifest(
        contributor="someone",
        run="run",
        base=BaseReference(base.round, base.weights.sha256),
        weights=tensor_file(file),
        task="task",
        data_sha256="0" * 64,
        rows=10,
    )
    return replace(said, **more)


def candidate(name, file, base, **more):
    return Candidate(
        name=name,
        manifest=contribution(file, base, **more),
        manifest_sha256=f"{name:.<64}",
        file=file,
    )


def member(file, **more):
    return Member(file_sha256(file), file, **more)
