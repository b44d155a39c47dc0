import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_models import LABELS, write_model, write_task

ROOT = Path(__file__).resolve().parents[2]


def launch(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_script_and_command_run_one_study(tmp_path):
    write_model(tmp_path / "one")
    write_model(tmp_path / "two", seed=1)
    film = write_task(tmp_path / "tasks" / "film", test=False)
    rows = [
        {"text": f"we saw a {word} film", "label": LABELS[n % 2]}
        for n, word in enumerate(("bad", "good", "dull", "great"))
    ]
    (film / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hosts = f"one={tmp_path / 'one'}+two={tmp_path / 'two'}"
    options = f"data={tmp_path / 'tasks'},hosts={hosts},pairs=one:two,techniques=lora"
    workdir = f"--workdir={tmp_path / 'run'}"
    script = launch(
        ROOT / "launch" / "portability.py",
        f"--config={ROOT}/configs/portability/local.py:{options},smoke",
        workdir,
        "--config.inits=('ported','scratch')",
        "--config.max_length=16",
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout.startswith("technique, init")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["runs"]) == 4

    # The same study by the command only reads what is there.
    command = launch(
        "-m",
        "fusion_jax.cli.main",
        "portability",
        f"--config={ROOT}/configs/portability/local.py:{options},smoke",
        workdir,
        "--inits=ported+scratch",
        "--max-length=16",
        "--json",
    )
    assert command.returncode == 0, command.stderr
    assert json.loads(command.stdout)["runs"] == results["runs"]
    wrong = launch(
        ROOT / "launch" / "portability.py",
        f"--config={ROOT}/configs/portability/local.py:{options},smoke",
        f"--workdir={tmp_path / 'other'}",
        "--config.pairs=('one:three',)",
    )
    assert wrong.returncode == 1
    assert "three is not among the hosts (one, two)" in wrong.stderr
    assert "Traceback" not in wrong.stderr
