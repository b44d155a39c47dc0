"""RegMean of one layer in float64 from its formula, beside what was written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

TENSOR = "transformer.h.0.attn.c_attn.weight"
"""The layer whose inputs need no attention: Norm(word + position)."""
EPSILON = 1e-5


def against_formula(
    merged: Path, models: Sequence[Path], rows: Sequence[Path], alpha: float
) -> dict[str, float]:
    """How far the merged first layer is from (sum_k G_k)^-1 sum_k G_k W_k.

    G_k is the mean of x x^T over the tokens of model k, its off-diagonal times alpha;
    tokens, Grams and the solution are computed here from the files, in float64.

    Args:
      merged: folder of the merged model.
      models: folders of the K models.
      rows: K '.npy' files of token ids.
      alpha: scale of the off-diagonal.

    Returns:
      max_abs: the largest difference; moved: the largest difference of the formula to
      the plain mean of the models, for scale.
    """
    total: Any = 0
    right: Any = 0
    mean: Any = 0
    for folder, file in zip(models, rows, strict=True):
        kernel = tensor(folder, TENSOR)
        x = inputs(folder, np.load(file))
        gram = x.T @ x / len(x)
        gram = alpha * gram + (1 - alpha) * np.diag(gram.diagonal())
        total, right = total + gram, right + gram @ kernel
        mean = mean + kernel / len(models)
    wanted = np.linalg.solve(total, right)
    return {
        "max_abs": float(np.abs(tensor(merged, TENSOR) - wanted).max()),
        "moved": float(np.abs(wanted - mean).max()),
    }


def inputs(folder: Path, ids: np.ndarray) -> np.ndarray:
    """What the first layer's attention reads, [tokens, width]."""
    words = tensor(folder, "transformer.wte.weight")
    places = tensor(folder, "transformer.wpe.weight")
    x = words[ids] + places[: ids.shape[1]]
    x = x - x.mean(-1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + EPSILON)
    scale = tensor(folder, "transformer.h.0.ln_1.weight")
    x = x * scale + tensor(folder, "transformer.h.0.ln_1.bias")
    return x.reshape(-1, x.shape[-1])


def tensor(folder: Path, name: str) -> np.ndarray:
    """A tensor of a folder in float64."""
    with safe_open(str(folder / "model.safetensors"), framework="numpy") as opened:
        return opened.get_tensor(name).astype(np.float64)
