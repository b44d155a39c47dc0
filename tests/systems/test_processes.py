"""A system in a job of several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_models import write_model, write_task

PROCESS = Path(__file__).parent / "process.py"


def start(root, processes):
    """What each process printed: system -> its methods."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    started = [
        subprocess.Popen(
            [
                sys.executable,
                str(PROCESS),
                str(root),
                str(processes),
                str(i),
                str(port),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        outputs = [one.communicate(timeout=400) for one in started]
    finally:
        for one in started:
            one.kill()
    for one, (_, errors) in zip(started, outputs, strict=True):
        assert one.returncode == 0, errors[-4000:]
    printed = [
        [line.split(" ", 1) for line in out.splitlines() if line.startswith(SYSTEMS)]
        for out, _ in outputs
    ]
    return [{name: json.loads(text) for name, text in lines} for lines in printed]


SYSTEMS = ("finetune", "dfwe")


@pytest.mark.slow
def test_two_processes_leave_one_run_like_that_of_one(tmp_path):
    write_model(tmp_path / "encoder")
    for name in ("film", "play", "song"):
        write_task(tmp_path / "tasks" / name)
    [alone] = start(tmp_path, 1)
    both = start(tmp_path, 2)
    for system in SYSTEMS:
        for methods in both:
            assert methods[system].keys() == alone[system].keys()
        one, two = (tmp_path / f"{system}_{n}" for n in (1, 2))
        # The name of a search's state holds the experts, to the last bit.
        kinds = [
            {p.name.split("-")[0] for p in folder.iterdir()} for folder in (one, two)
        ]
        assert kinds[0] == kinds[1]
        written = json.loads((two / "results.json").read_text())
        assert written["methods"] == both[0][system]
        for name, entry in alone[system].items():
            # Sums over two devices differ in the last bit: a row may change sides.
            assert entry["dev"] == pytest.approx(
                written["methods"][name]["dev"], abs=0.2
            )
    # A finished run is read by both, not made anew.
    before = (tmp_path / "dfwe_2" / "results.json").stat().st_mtime_ns
    assert start(tmp_path, 2)[0]["dfwe"] == both[0]["dfwe"]
    assert (tmp_path / "dfwe_2" / "results.json").stat().st_mtime_ns == before
