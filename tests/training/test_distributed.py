"""Two processes give what one gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROCESS = Path(__file__).parent / "process.py"


def run(folder, name, processes, mesh, workdir="none"):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    started = [
        subprocess.Popen(
            [
                sys.executable, str(PROCESS), str(workdir), str(folder / name),
                "--processes", str(processes), "--process", str(i),
                "--port", str(port), "--mesh", mesh,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        outputs = [one.communicate(timeout=300)[0] for one in started]
    finally:
        for one in started:
            one.kill()
    for one, output in zip(started, outputs, strict=True):
        assert one.returncode == 0, output
    return dict(np.load(folder / name))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return run(folder, "alone.npz", 1, "expert=1,data=1")


@pytest.mark.parametrize("mesh", ["expert=1,data=2", "expert=2,data=1"])
def test_two_processes_give_what_one_gives(alone, mesh, tmp_path):
    workdir = tmp_path / "run"
    found = run(tmp_path, "two.npz", 2, mesh, workdir)
    assert found.keys() == alone.keys()
    for name, expected in alone.items():
        np.testing.assert_allclose(found[name], expected, atol=2e-6, err_msg=name)
    # Written once, by process 0 alone; the result once, by both.
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) > 0
    again = run(tmp_path, "again.npz", 2, mesh, workdir)
    for name, expected in found.items():
        np.testing.assert_array_equal(again[name], expected, err_msg=name)
