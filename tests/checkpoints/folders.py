"""Small model folders on disk, and what is in them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SHAPES = {
    "embed.weight": (12, 6),
    "layers.0.attention.weight": (6, 6),
    "layers.0.attention.bias": (6,),
    "layers.1.attention.weight": (6, 6),
    "layers.1.attention.bias": (6,),
    "scale": (1,),
}
IDS = np.arange(5, dtype=np.int64)


def tensors_of(seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    floating = {n: random.normal(size=s).astype(dtype) for n, s in SHAPES.items()}
    return {**floating, "position_ids": IDS}


def write_folder(
    folder: Path,
    tensors: dict[str, np.ndarray],
    *,
    shards: int = 1,
    config: dict[str, Any] | None = None,
) -> Path:
    """A model folder; with several shards it has an index."""
    folder.mkdir(parents=True)
    names = list(tensors)
    files = {}
    for number in range(shards):
        part = names[number::shards]
        name = (
            "model.safetensors"
            if shards == 1
            else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        )
        save_file({n: tensors[n] for n in part}, folder / name, {"format": "pt"})
        files |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said = {"model_type": "tiny", "torch_dtype": "float32", **(config or {})}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def digests(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of every file below a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
