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
        [sys.executable, ROOT / "launch" / "finetune.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_the_script_runs_a_config_with_changed_fields(tmp_path):
    encoder = write_model(tmp_path / "encoder")
    task = write_task(tmp_path / "opinion")
    config = f"--config={ROOT}/configs/finetune/local.py:data={task},encoder={encoder}"
    workdir = f"--workdir={tmp_path / 'run'}"
    done = launch(config, workdir, "--config.fit.epochs=1", "--config.max_length=16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("split") and f"{tmp_path / 'run'}" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["fit"]["epochs"] == 1

    mistyped = launch(config, workdir, "--config.fit.epoch=1")
    assert mistyped.returncode != 0 and "epochs" in mistyped.stderr
    changed = launch(config, workdir, "--config.fit.epochs=2")
    assert changed.returncode == 1
    assert "config.fit.epochs: 1 there, 2 asked for" in changed.stderr
    assert "Traceback" not in changed.stderr
