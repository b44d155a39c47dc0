"""Checkpoints of more than twice the memory are merged: a real limit, real files."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

pytestmark = pytest.mark.slow

LIMIT = 640 * 2**20  # bytes; of which Python and XLA take half
TENSORS, ROWS, WIDTH = 10, 16384, 1024  # of each model: 640 MiB
MERGE = """
import sys
from fusion_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    tile = random.standard_normal((1024, WIDTH)).astype(np.float32)
    for number, name in enumerate(("base", "a", "b")):
        (folder / name).mkdir()
        tensors = {
            f"layers.{i}.weight": np.tile(tile + number * 1e-3 * (i + 1), (16, 1))
            for i in range(TENSORS)
        }
        safetensors.numpy.save_file(tensors, folder / name / "model.safetensors")
    return folder


@contextlib.contextmanager
def limited():
    """How a child gets its limit: a memory cgroup, or the size of its data segment.

    A cgroup counts the pages of the files as well: the stricter of the two.
    """
    place = Path("/sys/fs/cgroup/memory")
    group = place / f"fusion_jax_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield lambda: resource.setrlimit(resource.RLIMIT_DATA, (2 * LIMIT, 2 * LIMIT))
        return
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_inputs_of_three_times_the_memory_are_merged(models, tmp_path, method):
    out = tmp_path / "out"
    files = [models / name / "model.safetensors" for name in ("base", "a", "b")]
    assert sum(file.stat().st_size for file in files) > 2.9 * LIMIT
    command = [sys.executable, "-c", MERGE, "merge", "--method", method]
    command += ["--models", str(models / "a"), str(models / "b")]
    command += ["--base", str(models / "base"), "--out", str(out)]
    with limited() as limit:
        found = subprocess.run(
            command, preexec_fn=limit, capture_output=True, text=True, timeout=600
        )
    assert found.returncode == 0, found.stderr
    with safetensors.safe_open(out / "model.safetensors", framework="numpy") as merged:
        part = merged.get_slice("layers.9.weight")[:4]
    sources = []
    for file in files:
        with safetensors.safe_open(file, framework="numpy") as model:
            sources.append(model.get_slice("layers.9.weight")[:4])
    base, a, b = sources
    if method == "linear":
        np.testing.assert_allclose(part, (a + b) / 2, rtol=1e-6, atol=1e-7)
    else:
        # Layer 9 moves most: all of it is among the largest 20 %, and signs agree.
        np.testing.assert_allclose(part, base + (a - base + b - base) / 2, atol=1e-6)
