import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_models import write_model, write_task

ROOT = Path(__file__).resolve().parents[2]


def launch(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "launch" / "cold_fusion.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_the_script_runs_a_config_with_changed_fields(tmp_path):
    encoder = write_model(tmp_path / "encoder")
    for name in ("film", "play"):
        write_task(tmp_path / "tasks" / name)
    options = f"data={tmp_path / 'tasks'},encoder={encoder},rounds=1,max_length=16"
    config = f"--config={ROOT}/configs/cold_fusion/local.py:{options},smoke"
    workdir = f"--workdir={tmp_path / 'run'}"
    done = launch(config, workdir, "--config.rounds=1", "--config.baselines=()")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("method") and "ColD Fusion" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [entry["round"] for entry in results["rounds"]] == [0, 1]

    mistyped = launch(config, workdir, "--config.round=1")
    assert mistyped.returncode != 0 and "rounds" in mistyped.stderr
    changed = launch(config, workdir, "--config.rounds=2")
    assert changed.returncode == 1
    assert "config.rounds: 1 there, 2 asked for" in changed.stderr
    assert "Traceback" not in changed.stderr
