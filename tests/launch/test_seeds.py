"""--seeds is a flag of the systems whose config has the field, and of no other."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("system", ["finetune", "task_selection"])
def test_a_system_without_seeds_refuses_the_flag_in_one_line(system):
    config = ROOT / "configs" / system / "quickstart.py"
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "launch" / f"{system}.py"),
            *(f"--config={config}", "--seeds=2"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "seeds" in done.stderr
