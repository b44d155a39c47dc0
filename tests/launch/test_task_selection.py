import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_models import write_model
from tests.systems.selection_tasks import write_domains

ROOT = Path(__file__).resolve().parents[2]


def launch(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "launch" / "task_selection.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_the_script_runs_a_config_with_changed_fields(tmp_path):
    encoder = write_model(tmp_path / "encoder")
    write_domains(tmp_path / "tasks")
    options = f"data={tmp_path / 'tasks'},encoder={encoder},max_length=16"
    config = f"--config={ROOT}/configs/task_selection/local.py:{options},smoke"
    workdir = f"--workdir={tmp_path / 'run'}"
    measures = "--config.measures=('jensen_shannon',)"
    done = launch(config, workdir, measures, "--config.keep=0.3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("order") and "Jensen-Shannon" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert sum(pair["kept"] for pair in results["pairs"]) == 4

    changed = launch(config, workdir, measures, "--config.keep=0.9")
    assert changed.returncode == 1
    assert "config.keep: 0.3 there, 0.9 asked for" in changed.stderr
    assert "Traceback" not in changed.stderr
