import json
import os
import subprocess
import sys

import pytest

from fusion_jax.cli.main import COMMANDS, main
from fusion_jax.version import __version__


def test_the_version_is_the_packages(command):
    assert command("--version") == (0, f"fusion-jax {__version__}\n", "")


def test_help_names_every_command(command):
    code, said, _ = command("--help")
    assert code == 0
    for name, line in COMMANDS.items():
        assert name in said and line.split()[0] in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(command, name):
    code, said, _ = command(name, "--help")
    assert code == 0
    assert "--json" in said and "--quiet" in said
    assert "None" not in said


def test_help_loads_no_heavy_library():
    code = (
        "import json, sys\n"
        "from fusion_jax.cli.main import main\n"
        "codes = [main(a) for a in (['--help'], ['dfwe', '--help'], ['predict', '-h'])]"
        "\nprint(json.dumps([codes, sorted({n.split('.')[0] for n in sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    codes, loaded = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 0]
    heavy = {
        "flax",
        "optax",
        "orbax",
        "evosax",
        "transformers",
        "datasets",
        "tqdm",
        "tokenizers",
        "matplotlib",
        "ml_collections",
        "torch",
        "safetensors",
    }
    assert not heavy & set(loaded)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "COMMAND"),
        (["dfve"], "invalid choice: 'dfve'"),
        (["dfwe"], "--data --config"),
        (["dfwe", "--data", "x", "--config", "y"], "not allowed with"),
        (["dfwe", "--data", "x", "--shots", "few"], "--shots"),
        (["finetune", "--data", "x", "--epoch", "3"], "--epoch"),
        (["evaluate", "model"], "--data"),
        (["predict", "model", "--text", "a", "--input", "b"], "not allowed with"),
    ],
)
def test_wrong_usage_ends_with_two_and_says_what_is_wrong(command, arguments, said):
    code, out, error = command(*arguments)
    assert (code, out) == (2, "")
    assert said in error


def test_a_failure_ends_with_one_and_one_paragraph(command, tmp_path):
    code, out, error = command("predict", tmp_path / "nowhere", "--text", "good")
    assert (code, out) == (1, "")
    assert error.startswith("error: ") and "nowhere" in error
    assert "Traceback" not in error


def test_the_traceback_is_there_for_who_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_JAX_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(["predict", str(tmp_path / "nowhere"), "--text", "good"])
