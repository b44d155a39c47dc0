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


def start(root, processes, length=16):
    """What each process ended with, and what it printed: system -> its methods."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    # Files, not pipes: a process that waits for its reader makes the others wait.
    files = [(root / f"{processes}_{i}.log").open("w+") for i in range(processes)]
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, (PROCESS, root, processes, i, port, length))],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        for i, file in enumerate(files)
    ]
    try:
        codes = [one.wait(timeout=400) for one in started]
    finally:
        for one in started:
            one.kill()
    found = []
    for code, file in zip(codes, files, strict=True):
        file.seek(0)
        output = file.read()
        file.close()
        lines = [x.split(" ", 1) for x in output.splitlines() if x.startswith(SYSTEMS)]
        found.append((code, {name: json.loads(x) for name, x in lines}, output))
    return found


def finished(*arguments):
    """What the processes printed; all came to their end."""
    found = start(*arguments)
    for code, _, output in found:
        assert code == 0, output[-4000:]
    return [printed for _, printed, _ in found]


SYSTEMS = ("finetune", "dfwe")


@pytest.mark.slow
def test_two_processes_leave_one_run_like_that_of_one(tmp_path):
    write_model(tmp_path / "encoder")
    for name in ("film", "play", "song"):
        write_task(tmp_path / "tasks" / name)
    [alone] = finished(tmp_path, 1)
    both = finished(tmp_path, 2)
    for system in SYSTEMS:
        assert both[0][system].keys() == alone[system].keys()
        # Each on its own devices, with the same numbers.
        assert both[1][system] == both[0][system]
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
    assert finished(tmp_path, 2)[0]["dfwe"] == both[0]["dfwe"]
    assert (tmp_path / "dfwe_2" / "results.json").stat().st_mtime_ns == before
    # What fails in the first ends the others too, with a word on where to look.
    (code, _, first), (other, _, second) = start(tmp_path, 2, 20)
    assert code != 0 and other != 0
    assert "holds a run of another config" in first
    assert "process 0 could not write" in second
