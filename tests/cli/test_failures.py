import subprocess
import sys

import pytest

from fusion_jax.cli.failures import WrongUsage, explained
from fusion_jax.trees import TreeMismatch


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("the row"), 1),
        (TreeMismatch("the leaf"), 1),
        (FileNotFoundError("the file"), 1),
        (FloatingPointError("the step"), 1),
        (WrongUsage("the option"), 2),
    ],
)
def test_an_expected_error_is_its_message_and_a_code(error, code, capsys):
    with pytest.raises(SystemExit) as end, explained():
        raise error
    assert end.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), explained():
        _ = 1 / 0


def test_a_reader_that_closes_the_pipe_ends_it_without_a_word():
    code = (
        "import sys\n"
        "from fusion_jax.cli.failures import explained\n"
        "with explained():\n"
        "    for _ in range(100_000): print('a line')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    _, error = child.communicate()
    assert (child.returncode, error) == (1, b"")
