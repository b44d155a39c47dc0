import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one launch script, which prints its arguments as JSON."""
    for folder in ("launch", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / "check out" / folder)
    probe = tmp_path / "check out" / "launch" / "probe.py"
    probe.write_text(
        "import json, os, sys\n"
        "names = 'FUSION_JAX_DISTRIBUTED', 'JAX_PLATFORMS'\n"
        "first, second = [os.environ.get(name) for name in names]\n"
        "print(json.dumps([first, sys.argv[1:], second]))\n"
    )
    return tmp_path / "check out"


# What a shell, YAML and Kubernetes each like to change.
AWKWARD = (
    "--note=two words",
    '--quote=it\'s "so"',
    "--shell=$HOME $(pwd) `pwd` \\ & ; * #",
    "--yaml=a: {b: [c]} %d @NAME@",
    "--empty=",
    "",
    "--name=mine",
    "-x",
)


@pytest.fixture
def awkward():
    return list(AWKWARD)
