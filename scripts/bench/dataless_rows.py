"""Random token rows in the place of an owner's data, and how the peer reads them.

numpy is all it takes: the peer's interpreter imports this file from a copy.
"""

from pathlib import Path
from typing import Any

import numpy as np


def write(file: Path, seed: int, shape: tuple[int, int], words: int) -> None:
    """Writes rows of token ids, [rows, tokens] int64, where they are not there yet.

    Args:
      file: '.npy'.
      seed: of the draw.
      shape: rows and tokens of a row.
      words: of the vocabulary. Its last one is the padding and is never drawn.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.random.default_rng(seed).integers(0, words - 1, shape))


def load(file: str) -> list[dict[str, Any]]:
    """The rows as a data set of FusionBench: a dictionary of arrays each."""
    return [
        {"input_ids": row, "attention_mask": np.ones_like(row)} for row in np.load(file)
    ]
