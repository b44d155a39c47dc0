import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELL = sorted(
    [*ROOT.glob("scripts/**/*.sh"), *ROOT.glob("launch/**/*.sh"), ROOT / ".ci" / "run"]
)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_every_shell_file_parses(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_what_is_run_stops_at_the_first_error(path):
    text = path.read_text(encoding="utf-8")
    if text.startswith("#!"):
        assert "\nset -euo pipefail\n" in text
    else:
        # Sourced: the options are the caller's.
        assert "\nset -" not in text
