import json
import os
import shlex
import subprocess
import sys

import pytest

POD = ["--name", "pod-1", "--zone", "us-central2-b"]


def tpu_pod(checkout, *arguments, **environment):
    return subprocess.run(
        ["bash", checkout / "launch" / "tpu_pod.sh", *arguments],
        cwd=checkout.parent,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environment},
    )


def test_dry_run_prints_the_commands_in_order(checkout):
    done = tpu_pod(
        checkout, *POD, "--project=lab", "--dry-run",
        *("probe", "--config=configs/dfwe/friends.py:data=d", "--workdir=w"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ssh = (
        "gcloud compute tpus tpu-vm ssh pod-1 --zone=us-central2-b --worker=all "
        "--project=lab "
    )
    assert done.stdout.splitlines() == [
        "git archive --format=tar.gz --output=.cache/launch/fusion_jax.tar.gz HEAD",
        "gcloud compute tpus tpu-vm scp .cache/launch/fusion_jax.tar.gz "
        "pod-1:fusion_jax.tar.gz --zone=us-central2-b --worker=all --project=lab",
        ssh + "'--command=mkdir -p fusion_jax && cd fusion_jax && "
        "rm -rf fusion_jax configs launch scripts && "
        "tar -xzf ../fusion_jax.tar.gz && bash scripts/install.sh tpu'",
        ssh + "'--command=cd fusion_jax && . launch/env/tpu.sh && "
        "exec env FUSION_JAX_DISTRIBUTED=1 .venv/bin/python launch/probe.py "
        "--config=configs/dfwe/friends.py:data=d --workdir=w'",
    ]
    assert not (checkout / ".cache").exists(), "a dry run wrote a file"


def test_no_copy_leaves_only_the_run(checkout):
    done = tpu_pod(checkout, *POD, "--no-copy", "--dry-run", "probe")
    (line,) = done.stdout.splitlines()
    assert line.endswith("launch/probe.py'")


def test_arguments_survive_both_shells(checkout, awkward):
    done = tpu_pod(checkout, *POD, "--no-copy", "--dry-run", "probe", *awkward)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    (remote,) = [word for word in words if word.startswith("--command=")]
    # One quoting for the shell here, one for the shell of the worker.
    launched = shlex.split(remote.removeprefix("--command="))
    assert launched[launched.index("launch/probe.py") + 1 :] == awkward


def test_a_run_reaches_the_launch_script_of_the_worker(checkout, awkward, tmp_path):
    # gcloud on a machine without Google Cloud: the worker is a folder, its shell bash.
    bin_folder, worker = tmp_path / "bin", tmp_path / "worker"
    bin_folder.mkdir()
    (bin_folder / "gcloud").write_text(
        '#!/bin/bash\ncd "$HOME"\nlast="${@: -1}"\nexec bash -c "${last#--command=}"\n'
    )
    (bin_folder / "gcloud").chmod(0o755)
    (worker / "fusion_jax" / ".venv" / "bin").mkdir(parents=True)
    (worker / "fusion_jax" / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (worker / "fusion_jax" / "launch").symlink_to(checkout / "launch")
    done = tpu_pod(
        checkout,
        *(*POD, "--no-copy", "probe", *awkward),
        PATH=f"{bin_folder}:{os.environ['PATH']}",
        HOME=str(worker),
    )
    assert done.returncode == 0, done.stderr
    printed, *_, answer = done.stdout.splitlines()
    assert printed.startswith("gcloud compute tpus tpu-vm ssh pod-1 ")
    assert json.loads(answer) == ["1", awkward, "tpu,cpu"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["probe"], "--name wants the name of the TPU VM"),
        (["--name", "a", "probe"], "--zone wants its zone"),
        ([*POD, "absent"], "there is no launch/absent.py"),
        (POD, "name the script of launch/ to run"),
        ([*POD, "--fast", "probe"], "unknown option --fast"),
        ([*POD, "--project"], "--project wants a value"),
    ],
)
def test_wrong_usage_is_named(checkout, arguments, message):
    done = tpu_pod(checkout, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
