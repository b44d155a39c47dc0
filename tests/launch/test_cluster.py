import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from fusion_jax import runtime

SLURM = ["slurm", "--name", "friends", "--nodes", "2", "--gpus", "8"]
GKE = ["gke", "--name", "friends", "--image", "images/fusion_jax:1"]
GKE += ["--topology", "4x4", "--claim", "runs-claim"]


def cluster(checkout, *arguments, environment=None):
    return subprocess.run(
        [sys.executable, "launch/cluster.py", *arguments],
        cwd=checkout,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def dry_run(checkout, *arguments):
    done = cluster(checkout, *arguments)
    assert done.returncode == 0, done.stderr
    command, name, text = done.stdout.split("\n", 2)
    assert not (checkout / ".cache").exists(), "a dry run wrote a file"
    return command, name, text


def test_slurm_dry_run_prints_the_command_and_the_batch_file(checkout):
    command, name, text = dry_run(
        checkout,
        *SLURM,
        *("--time", "1-00:00:00", "--sbatch=--partition=big gpus", "--dry-run"),
        *("probe", "--config=configs/dfwe/friends.py:data=tasks", "--workdir=w"),
    )
    assert command == (
        f"cd '{checkout}' && sbatch '--partition=big gpus' .cache/launch/friends.sbatch"
    )
    assert name == "# .cache/launch/friends.sbatch:"
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --job-name=friends",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --time=1-00:00:00",
        "#SBATCH --output=runs/slurm/%x-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
    ]
    assert lines[-5:] == [
        "set -euo pipefail",
        f"cd '{checkout}'",
        "source launch/env/gpu.sh",
        f"export {runtime.DISTRIBUTED}=1",
        "srun --kill-on-bad-exit=1 .venv/bin/python launch/probe.py "
        "--config=configs/dfwe/friends.py:data=tasks --workdir=w",
    ]


def test_slurm_batch_file_hands_every_argument_on_unchanged(
    checkout, awkward, tmp_path
):
    _, _, text = dry_run(checkout, *SLURM, "--dry-run", "probe", *awkward)
    # srun on a machine without Slurm: runs what follows its own options, once.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "srun").write_text('#!/bin/bash\nshift\nexec "$@"\n')
    (bin_folder / "srun").chmod(0o755)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    done = subprocess.run(
        ["bash", "-c", text],
        cwd="/",
        capture_output=True,
        text=True,
        env={"PATH": f"{bin_folder}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["1", awkward, "cuda,cpu"]


def test_gke_dry_run_prints_the_command_and_a_jobset(checkout):
    command, name, text = dry_run(
        checkout, *GKE, "--dry-run", "probe", "--workdir=/runs/friends"
    )
    assert command == (
        f"cd '{checkout}' && kubectl apply --filename .cache/launch/friends.yaml"
    )
    assert name == "# .cache/launch/friends.yaml:"
    jobset = yaml.safe_load(text)
    assert jobset["kind"] == "JobSet"
    assert jobset["metadata"]["name"] == "friends"
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    # 4 x 4 chips, four to a host.
    assert (job["parallelism"], job["completions"]) == (4, 4)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == "images/fusion_jax:1"
    assert container["command"] == [
        *("bash", "-c", '. launch/env/tpu.sh && exec python "$@"', "fusion_jax"),
        *("launch/probe.py", "--workdir=/runs/friends"),
    ]
    assert container["env"] == [{"name": runtime.DISTRIBUTED, "value": "1"}]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "runs-claim"}
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/runs"}]


def test_gke_command_hands_every_argument_on_unchanged(checkout, awkward, tmp_path):
    _, _, text = dry_run(checkout, *GKE, "--dry-run", "probe", *awkward)
    (workers,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    (container,) = workers["template"]["spec"]["template"]["spec"]["containers"]
    # Kubernetes turns $$ into $ and leaves unknown $(NAME) alone.
    command = [word.replace("$$(", "$(") for word in container["command"]]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python").symlink_to(sys.executable)
    done = subprocess.run(
        command,
        cwd=checkout,
        capture_output=True,
        text=True,
        env={
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            **{variable["name"]: variable["value"] for variable in container["env"]},
        },
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["1", awkward, "tpu,cpu"]


def test_submitting_writes_the_file_that_the_dry_run_showed(checkout, tmp_path):
    _, _, text = dry_run(checkout, *SLURM, "--dry-run", "probe")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "sbatch").write_text('#!/bin/bash\nls -d runs/slurm\ncat "$1"\n')
    (bin_folder / "sbatch").chmod(0o755)
    path = f"{bin_folder}:{os.environ['PATH']}"
    done = cluster(checkout, *SLURM, "probe", environment={"PATH": path})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"runs/slurm\n{text}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*SLURM, "absent"], "there is no launch/absent.py"),
        (["slurm", "--name", "Two Words", "probe"], "'Two Words' is not of the form"),
        ([*SLURM, "--time", "soon", "probe"], "'soon' is not of the form"),
        ([*SLURM, "--nodes", "0", "probe"], "'0' is not a number from 1"),
        ([*GKE, "--topology", "4by4", "probe"], "'4by4' is not of the form 4x4"),
        ([*GKE, "--chips", "3", "probe"], "has 16 chips, which is no multiple of 3"),
        (["gke", "--name", "a", "probe"], "required: --image, --topology, --claim"),
    ],
)
def test_wrong_usage_is_named_and_submits_nothing(checkout, arguments, message):
    done = cluster(checkout, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (checkout / ".cache").exists()


@pytest.mark.parametrize("arguments, program", [(SLURM, "sbatch"), (GKE, "kubectl")])
def test_a_machine_without_the_cluster_is_told_of_the_dry_run(
    checkout, arguments, program
):
    done = cluster(checkout, *arguments, "probe", environment={"PATH": "/nonexistent"})
    assert done.returncode == 1
    assert f"{program} is not installed here; --dry-run" in done.stderr


def test_every_place_of_a_template_is_filled_and_every_value_used(checkout):
    sys.path.insert(0, str(checkout / "launch"))
    try:
        import cluster as module
    finally:
        sys.path.pop(0)
    assert module.fill("@A@ @B@ a@b.c", {"A": "@B@", "B": 2}) == "@B@ 2 a@b.c"
    with pytest.raises(ValueError, match=re.escape("['A'] that have no value")):
        module.fill("@A@", {})
    with pytest.raises(ValueError, match=re.escape("no place for ['B']")):
        module.fill("", {"B": 1})


def test_dry_run_quotes_the_command_for_a_shell(checkout):
    command, _, _ = dry_run(checkout, *SLURM, "--sbatch=--comment=a b", "--dry-run",
                            "probe")  # fmt: skip
    assert shlex.split(command)[3:] == [
        *("sbatch", "--comment=a b", ".cache/launch/friends.sbatch"),
    ]
