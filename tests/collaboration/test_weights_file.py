"""Files written in pieces: their layout, their rounding."""

import ml_dtypes
import numpy as np

from fusion_jax.checkpoints.tensors import write_file
from fusion_jax.collaboration.weights_file import rounded
from tests.collaboration.bodies import member
from tests.collaboration.fuses import MEAN, fused


def test_rounding_to_bfloat16_is_to_the_nearest_of_all_of_them():
    near = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, 1 + 2**-8, 3e38, -np.inf])
    found = rounded(near, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)
    np.testing.assert_array_equal(found[:3], [1 + 2**-7, 1, 1])
    assert found[4] == -np.inf
    values = np.random.default_rng(0).normal(size=5000)
    found = rounded(values, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)
    all_of_them = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):  # NaN among them
        grid = np.unique(all_of_them[np.isfinite(all_of_them)].astype(np.float64))
    above = np.searchsorted(grid, values)
    beside = np.stack([grid[above - 1], grid[above]])
    nearest = np.abs(beside - values).min(axis=0)
    np.testing.assert_array_equal(np.abs(found - values), nearest)


def test_the_layout_is_that_of_the_safetensors_library(tmp_path):
    tensors = {
        "b.é": np.zeros(2, np.float16),
        "a": np.ones((2, 3), np.float32),
        "n": np.zeros((), np.int64),
        "none": np.zeros((0, 3), np.float32),
    }
    file = tmp_path / "base.safetensors"
    write_file(file, tensors)
    _, made = fused(file, [member(file)], MEAN, tmp_path)
    assert (tmp_path / "out.safetensors").read_bytes() == file.read_bytes()
    assert made.bytes == file.stat().st_size
