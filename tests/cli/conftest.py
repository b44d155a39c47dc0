"""Models and task folders that the commands are tried on."""

import pytest

from fusion_jax.cli.main import main
from tests.small_models import LABELS, write_model, write_task


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with an encoder, a classifier and a task."""
    root = tmp_path_factory.mktemp("commands")
    write_model(root / "encoder")
    write_model(root / "classifier", kind="single_label", labels=LABELS)
    write_task(root / "opinion")
    return root


@pytest.fixture
def command(capsys):
    """Runs the command: (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
