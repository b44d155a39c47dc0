"""Rounds of tiny contributions, fused."""

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from fusion_jax.collaboration.fusing import FuseOptions, fuse
from tests.collaboration.bodies import base_tensors, save, tuned

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.float64]


MEAN = FuseOptions()


def round_of(folder, count=3, dtype=np.float32):
    """A base and contributions of it: (base file, its tensors, files, theirs)."""
    base = base_tensors(0, dtype)
    tensors = [tuned(base, seed) for seed in range(count)]
    files = [save(folder / f"c{k}.safetensors", x) for k, x in enumerate(tensors)]
    return save(folder / "base.safetensors", base), base, files, tensors


def fused(base, members, options, folder, **more):
    out = folder / "out.safetensors"
    made = fuse(base, members, options, out, **more)
    return load_file(out), made


def wide(tensors):
    return {n: x.astype(np.float64) for n, x in tensors.items() if x.dtype.kind != "i"}


def mean_of(tensors):
    total = sum(x.astype(np.float64) for x in tensors)
    return total / len(tensors)
