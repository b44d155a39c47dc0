"""Contributions as jobs: in processes, on a real local Ray, printed for schedulers."""

import json
import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fusion_jax.collaboration.jobs import (
    BACKENDS,
    Job,
    JobsFailed,
    attempt,
    check,
    run_processes,
)
from fusion_jax.collaboration.printed_jobs import kubernetes_jobs, label, slurm_array
from fusion_jax.collaboration.rounds import fuse_round
from tests.collaboration.repositories import at, make_repository
from tests.small_models import write_task

AWKWARD = Job(
    "a b", ("repository", "contribute", "s3://b/p", "--task", "it's $(x) `y`")
)
PLAIN = Job("plain", ("repository", "status", "/data/with blank"))


def contributions(tmp_path, tasks):
    """Jobs as `fusion-jax repository contribute --tasks` makes them."""
    url = str(tmp_path / "repository")
    return [
        Job(
            name,
            (
                *("repository", "contribute", url, "--data", str(tmp_path / "tasks")),
                *("--task", name, "--max-length", "16", "--cache", str(tmp_path / "c")),
                *("--workdir", str(tmp_path / "work"), "--set", "epochs=1"),
                *("--set", "batch_size=4"),
            ),
        )
        for name in tasks
    ]


@pytest.fixture
def tasks(tmp_path):
    make_repository(tmp_path)
    for name in ("film", "play"):
        write_task(tmp_path / "tasks" / name)
    return contributions(tmp_path, ("film", "play"))


def test_processes_contribute_and_a_second_run_finds_what_is_there(tmp_path, tasks):
    first = run_processes(tasks, workers=2)
    check(first)
    [again] = run_processes(tasks[:1])
    assert again.record["sha256"] == first[0].record["sha256"]
    assert first[0].record["fresh"] and not again.record["fresh"]
    base = fuse_round(at(tmp_path), quorum=2)
    assert {part.contributor for part in base.parts} == {"film", "play"}


def test_what_is_typed_wrong_is_not_tried_again_and_what_fails_is(tmp_path):
    wrong = attempt(Job("wrong", ("repository", "status")), retries=2)
    assert wrong.record is None and wrong.attempts == 1
    missing = Job("missing", ("repository", "status", str(tmp_path / "none")))
    failed = attempt(missing, retries=1)
    assert failed.attempts == 2 and "is no weight repository" in failed.error
    with pytest.raises(JobsFailed, match=r"2 of 2 .*\n  wrong .*"):
        check([wrong, failed])


def test_a_slurm_array_runs_each_job_word_by_word(tmp_path):
    text = slurm_array([AWKWARD, PLAIN], name="Round 1", workers=4)
    assert "#SBATCH --array=0-1%4" in text and "#SBATCH --job-name=round-1" in text
    script, program = tmp_path / "array.sh", tmp_path / "fusion-jax"
    script.write_text(text)
    program.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    for number, job in enumerate((AWKWARD, PLAIN)):
        done = subprocess.run(
            ["bash", str(script)],
            env={
                "PATH": f"{tmp_path}:/usr/bin:/bin",
                "SLURM_ARRAY_TASK_ID": str(number),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert tuple(done.stdout.splitlines()) == job.arguments


def test_kubernetes_jobs_are_yaml_with_one_job_a_contribution():
    yaml = pytest.importorskip("yaml")
    text = kubernetes_jobs([AWKWARD, PLAIN], image="registry/x:1", retries=3)
    items = yaml.safe_load(text)["items"]
    assert [item["metadata"]["name"] for item in items] == [
        "contribute-0-a-b",
        "contribute-1-plain",
    ]
    container = items[0]["spec"]["template"]["spec"]["containers"][0]
    # Kubernetes reads $$( as $(.
    words = [word.replace("$$(", "$(") for word in container["command"]]
    assert tuple(words) == ("fusion-jax", *AWKWARD.arguments)
    assert items[0]["spec"]["backoffLimit"] == 3
    assert json.loads(text)["kind"] == "List"


@pytest.mark.parametrize("text", ["", "___", "A" * 90, "ü/x", "a-"])
def test_a_label_is_one_that_dns_takes(text):
    made = label(text)
    assert 1 <= len(made) <= 63
    assert made.strip("-") == made and made.replace("-", "a").isalnum()
    assert shlex.quote(made) == made


def ray_workers():
    """Processes of this test's own Ray that run a job now."""
    parents, words = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                words[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])

    def ours(process):
        while process > 1:
            if process == os.getpid():
                return True
            process = parents.get(process, 0)
        return False

    return [
        process
        for process, line in words.items()
        if line.startswith(b"ray::attempt") and ours(process)
    ]


@pytest.mark.slow
def test_a_ray_worker_that_is_killed_in_mid_round_costs_nothing(tmp_path, tasks):
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    outcomes = []
    run = threading.Thread(
        target=lambda: outcomes.extend(BACKENDS["ray"](tasks, workers=2, retries=2))
    )
    run.start()
    deadline = time.monotonic() + 120
    while len(ray_workers()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    victims = ray_workers()
    assert len(victims) == 2, "both jobs should run at once"
    os.kill(victims[0], signal.SIGKILL)
    run.join(300)
    assert not run.is_alive()
    check(outcomes)
    base = fuse_round(at(tmp_path), quorum=2)
    assert {part.contributor for part in base.parts} == {"film", "play"}
